"""The splits of ListOps, drawn or read, prepared once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from matmix.sampling import stream
from sequence.data import labelled, listops_files
from sequence.data.cache import Entry, cached, source_key
from sequence.data.faults import Broken, bad
from sequence.data.labelled import Labelled
from sequence.data.listops import Shape, draw
from sequence.data.parallel import Advance, ordered_map, progress
from sequence.data.release import files, sources

VERSION = 1
"""Raised when the same settings prepare something else."""


class Sets(NamedTuple):
    """Splits by name, and the entry of the cache that holds them."""

    splits: dict[str, Labelled]
    entry: Entry


@cache
def generated(shape: Shape, counts: tuple[tuple[str, int], ...], seed: int, cache: str) -> Sets:
    """Different trees of one stream, cut into splits in this order."""
    key = {"version": VERSION, "shape": shape._asdict(), "counts": counts, "seed": seed}

    def make(folder: Path) -> dict[str, Any]:
        total = sum(count for _, count in counts)
        with progress(f"drawing {total:,} lists", total, "lists") as advance:
            rows = _counted(draw(shape, total, seed, ordered_map), advance)
            for split, count in counts:
                labelled.write(folder, split, islice(rows, count))
        return {}

    return _opened(cached("listops", key, make, cache), [split for split, _ in counts])


def longer(shape: Shape, factor: int, count: int, seed: int, cache: str) -> Labelled:
    """Lists longer than all in training, up to `factor` times as long as the longest there.

    For every doubling they may be one level deeper: of lists of ten levels 8 % have 500 to 2,000 tokens, 1 % up to
    twice and 0.04 % up to four times as many.
    """
    bounds = (shape.max_length * factor // 2 - 1, shape.max_length * factor)
    other = Shape(shape.max_depth + (factor - 1).bit_length(), shape.max_args, *bounds)
    name = f"test@{factor}x"
    return generated(other, ((name, count),), stream(seed, factor), cache).splits[name]


@cache
def from_files(data: str, broken: str, cache: str) -> Sets:
    """The splits of a folder of files, or of the packed release."""
    names = listops_files.NAMES
    used = sources(data, list(names.values()), listops_files.FOLDER)
    key = {"version": VERSION, "sources": source_key(*used), "broken": broken}

    def make(folder: Path) -> dict[str, Any]:
        splits = {name: split for split, name in names.items()}
        where, faults = {}, Broken(broken)
        for found in files(data, list(names.values()), listops_files.FOLDER):
            split = splits[found.name]
            rows = faults.kept(listops_files.read(found.file, found.where))
            count = labelled.write(folder, split, ((np.frombuffer(tree, np.uint8), label) for tree, label in rows))
            if not count:
                raise bad(found.where, 0, "it has a header and no row", "at least one row")
            where[split] = found.where
        return {"files": where, **faults.facts()}

    return _opened(cached("listops-files", key, make, cache), list(names))


def _counted(rows: Iterator[tuple[bytes, int]], advance: Advance) -> Iterator[tuple[np.ndarray, int]]:
    for done, (tree, label) in enumerate(rows):
        if done % 100 == 99:
            advance(100)
        yield np.frombuffer(tree, np.uint8), label


def _opened(entry: Entry, splits: list[str]) -> Sets:
    return Sets({split: labelled.read(entry.folder, split) for split in splits}, entry)
