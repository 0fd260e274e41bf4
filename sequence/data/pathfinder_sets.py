"""The pictures of Pathfinder, drawn or read, prepared once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sequence.data import pathfinder_release as release
from sequence.data import pictures
from sequence.data.cache import cached, source_key
from sequence.data.faults import BadData, Broken, bad
from sequence.data.parallel import chunks, ordered_map, progress
from sequence.data.pathfinder import Settings, draw
from sequence.data.pictures import Pictures

VERSION = 2
"""Raised when the same settings prepare something else."""
TOGETHER = 1000
"""Pictures that a worker draws or reads at once, if they are small:"""
CHUNK = 2**24
"""no more bytes than that."""


@cache
def generated(settings: Settings, count: int, seed: int, cache: str) -> Pictures:
    """The first `count` pictures of a seed."""
    key = {"version": VERSION, "settings": repr(settings), "count": count, "seed": seed}

    def make(folder: Path) -> dict[str, Any]:
        side = settings.window
        with progress(f"drawing {count:,} pictures of {side} x {side}", count, "pictures") as advance:

            def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                together = min(TOGETHER, CHUNK // side**2)
                for some in ordered_map(partial(_drawn, settings, seed), chunks(range(count), together)):
                    advance(len(some[1]))
                    yield some

            pictures.write(folder, parts())
        return {}

    return pictures.read(cached("pathfinder", key, make, cache))


def _drawn(settings: Settings, seed: int, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    found = draw(settings, seed=seed, indices=indices)
    return found.images, found.labels


@cache
def from_files(data: str, size: int, contour_length: int, broken: str, broken_copy: str, cache: str) -> Pictures:
    """The pictures of the release, in its order: of its folders, or of the packed archive.

    Raises:
        BadData: for damaged rows or pictures, unless `broken` is "skip", and for labels that belong to other pictures,
            unless `broken_copy` is "take".
    """
    archive = Path(data).expanduser()
    key = {"version": VERSION, "size": size, "broken": broken, "broken_copy": broken_copy}
    if archive.is_file():
        key |= {"sources": source_key(archive), "level": release.level_name(contour_length)}
    else:
        key["sources"] = source_key(*release.tables(release.located(data, size, contour_length)))

    def make(target: Path) -> dict[str, Any]:
        if not archive.is_file():
            return prepare(release.located(data, size, contour_length), target)
        with TemporaryDirectory(dir=target.parent) as room:
            folder = release.unpacked(archive, size, contour_length, Path(room))
            try:
                return prepare(folder, target) | {"folder": data}
            except BadData as error:  # of files that are gone then
                raise BadData(str(error).replace(str(folder), f"{archive}:{folder.name}")) from None

    def prepare(folder: Path, target: Path) -> dict[str, Any]:
        tables = release.tables(folder)
        measured = release.traced(folder, size)
        if broken_copy == "stop" and measured is not None and measured.broken:
            raise release.broken_copy(folder, measured)
        faults, empty = Broken(broken), 0
        found = list(faults.kept(row for table in tables for row in release.rows(table)))
        again = len(found) - len({(row.folder, row.name) for row in found})  # a cut may part them
        with progress(f"reading {folder}", len(found), "pictures") as advance:

            def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                nonlocal empty
                together = min(TOGETHER, CHUNK // size**2)
                for some in ordered_map(partial(_read, folder, size), chunks(found, together)):
                    theirs = [row for row in some if row is not None]
                    empty += len(some) - len(theirs)
                    kept = list(faults.kept(iter(theirs)))
                    if kept:
                        yield np.stack([image for image, _ in kept]), np.array([label for _, label in kept])
                    advance(len(some))

            if not pictures.write(target, parts()):
                raise bad(folder, 0, "it has no picture", "at least one")
        counts = {"left out, empty in the release": empty, "rows that name a picture of another row": again}
        return {"folder": str(folder), **{what: count for what, count in counts.items() if count}, **faults.facts()}

    return pictures.read(cached("pathfinder-files", key, make, cache))


def _read(folder: Path, size: int, some: list[release.Row]) -> list[tuple[np.ndarray, int] | BadData | None]:
    found = []
    for row in some:
        image = release.picture(folder, row, size)
        found.append((image, row.label) if isinstance(image, np.ndarray) else image)
    return found
