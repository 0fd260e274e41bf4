"""The files of the Long Range Arena's release: in a folder, or still in the packed archive, which is read as a stream.

The archive holds 18.6 GB in 8 GB. Reading it from end to end takes minutes and no space on the disk.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from matmix.spec import close_names
from sequence.data.faults import GZIP, UNREADABLE, BadData, apart, open_binary
from sequence.data.parallel import progress

URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
ARCHIVE = "lra_release.gz"
INSIDE = ("lra_release/lra_release", "lra_release", "")
"""Where the archive's folders stand once it is unpacked. Some are there twice; the inner ones are the sound ones."""
PACKED = ("", ".gz", ".bz2", ".xz")


class Found(NamedTuple):
    """One of the files that were asked for, open."""

    name: str
    where: str
    """Its path, or its place in the archive, for people."""
    file: IO[bytes]


@checking_arguments()
def files(data: Place, names: Sequence[str], folder: Place) -> Iterator[Found]:
    """Each of the files, once, in the order in which they come; those of an archive must be read before the next.

    Args:
        data: a folder that has them, or has the release's `folder` in it, or the packed archive.
        names: of the files; in a folder each may be packed by itself.
        folder: the release's name for the folder that holds them.

    Raises:
        BadData: for what is not there, or no such archive.
    """
    path = Path(data).expanduser()
    if path.is_file():
        yield from _packed(path, names)
        return
    there = located(path, names, folder)
    missing = [name for name in names if name not in there]
    if missing:
        raise BadData(_missing(path, missing, folder))
    apart({name: [file] for name, file in there.items()})
    for name, file in there.items():
        with open_binary(file) as opened:
            yield Found(name, str(file), opened)


def each(folder: Path, names: Sequence[str], inside: str) -> Iterator[Found]:
    """Those of the files that a folder has, or that are in a packed release in it."""
    there = located(folder, names, inside)
    for name, file in there.items():
        with open_binary(file) as opened:
            yield Found(name, str(file), opened)
    missing = [name for name in names if name not in there]
    if missing and (folder / ARCHIVE).is_file():
        yield from _packed(folder / ARCHIVE, missing)


def located(root: Path, names: Sequence[str], folder: str) -> dict[str, Path]:
    """Those of the files that a folder has, by name."""
    places = [root / inside / last for last in (folder, "") for inside in INSIDE]
    found = {}
    for name in names:
        files = (place / f"{name}{end}" for place in places for end in PACKED)
        first = next((file for file in files if file.is_file()), None)
        if first is not None:
            found[name] = first
    return found


@checking_arguments()
def sources(data: Place, names: Sequence[str], folder: Place) -> list[Path]:
    """The files on the disk that `files` reads: those that are named, or the archive."""
    path = Path(data).expanduser()
    return [path] if path.is_file() else list(located(path, names, folder).values())


def _packed(path: Path, names: Sequence[str]) -> Iterator[Found]:
    """The files in a tar archive, packed by gzip or not."""
    wanted, seen = set(names), list[str]()
    for member, file in members(path):
        if len(seen) < 4:
            seen.append(member)
        name = PurePosixPath(member).name
        if name in wanted:
            wanted.remove(name)
            yield Found(name, f"{path}:{member}", file)
            if not wanted:
                return
    raise BadData(
        f"data: {path} holds no {', '.join(sorted(wanted))}, but {', '.join(seen) or 'nothing'}, ...; allowed: "
        f"{ARCHIVE} from {URL}, or a tar archive with these files"
    )


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a tar archive, packed by gzip or not: name and contents, to be read before the next.

    Raises:
        BadData: for what is none, or is damaged.
    """
    any_file = False
    with open(path, "rb") as raw, progress(f"reading {path.name}", path.stat().st_size, "bytes") as advance:
        done = 0
        try:
            packed = raw.read(2) == GZIP
            raw.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            # As a stream: nothing is sought, so 8 GB of gzip are unpacked once.
            with tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as tar:
                for member in tar:
                    any_file = True
                    if member.isfile():
                        file = tar.extractfile(member)
                        assert file is not None
                        yield member.name, file
                    advance(raw.tell() - done)
                    done = raw.tell()
        except UNREADABLE as error:
            at = f"{raw.tell():,} of {path.stat().st_size:,} bytes"
            # tarfile says "zlib error" of what cannot be unpacked, in an exception of its own.
            foreign = isinstance(error, tarfile.TarError) and not any_file and "zlib" not in str(error)
            what = "is no tar archive" if foreign else "is damaged or cut short"
            raise BadData(f"data: {path} {what} (at {at}: {error}); allowed: {ARCHIVE}, whole, from {URL}") from error


def _missing(path: Path, missing: Sequence[str], folder: str) -> str:
    if path.is_dir():
        what = f"{path} has no {', '.join(missing)}"
    else:
        near = close_names(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else []
        what = f"there is no {path}" + (f" (did you mean {' or '.join(near)}?)" if near else "")
    return f"data: {what}; allowed: the folder {folder} of the release, one that holds it, or {ARCHIVE} from {URL}"
