"""Pathfinder as the Long Range Arena released it: pictures in folders, beside tables in plain text.

    pathfinder32/curv_contour_length_14/metadata/0.npy         a row a picture: folder, name, number, label, ...
    pathfinder32/curv_contour_length_14/imgs/0/sample_0.png

The tables are called .npy and are text. The order is that of S4's line of work: tables by number, rows as they stand.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.data.faults import BadData, arrays_of, bad, byte_lines, open_binary, shown
from sequence.data.pathfinder_trace import PICTURES, TRACED, Fit, fit
from sequence.data.release import ARCHIVE, INSIDE, URL, members

LEVELS = {14: "curv_contour_length_14", 9: "curv_contour_length_9", 6: "curv_baseline"}
"""Folders by the length of the long contours: "hard", "intermediate" and "easy"."""
PUBLISHED = 200_000
"""Pictures of each."""
EMPTY = ("curv_baseline", "imgs/0", "sample_172.png")
"""This file of pathfinder32 has no bytes in the release; everybody leaves it out."""
COLUMNS = 4
"""Folder, name, number and label come first; up to eleven say how the picture was made."""


class Row(NamedTuple):
    """One picture of a table."""

    folder: str
    name: str
    label: int
    table: str
    line: int


def folder_name(size: int) -> str:
    return f"pathfinder{size}"


def level_name(contour_length: int) -> str:
    """The folder of pictures with contours of this length.

    Raises:
        BadData: for a length that is not in the release.
    """
    if contour_length not in LEVELS:
        raise BadData(f"data: contour_length={contour_length} is not in the release; allowed: 14, 9, 6")
    return LEVELS[contour_length]


def unpacked(archive: Path, size: int, contour_length: int, room: Path) -> Path:
    """The folder of the pictures of this size and length, out of the packed release into an empty folder.

    It is read from end to end once, and nothing else of it is written: 200,000 small files, which take about 0.8 GB at
    32 pixels. Where a folder is there twice, the sound inner copy is taken.

    Raises:
        BadData: for an archive without it, or a damaged one.
    """
    inside = PurePosixPath(folder_name(size), level_name(contour_length))
    copies: dict[str, Path] = {}
    for member, file in members(archive):
        before, found, behind = f"/{member}".partition(f"/{inside}/")
        if not found or ".." in PurePosixPath(member).parts:
            continue
        copy = copies.setdefault(before, room / str(len(copies)) / inside.name)
        target = copy / behind
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as out:
            shutil.copyfileobj(file, out)
    if not copies:
        raise BadData(f"data: {archive} holds no {inside}; allowed: {ARCHIVE} from {URL}, or a tar archive with it")
    return copies[max(copies, key=len)]  # the inner one has the longer way to it


@checking_arguments()
def located(data: Place, size: int, contour_length: int) -> Path:
    """The folder of the pictures of this size and length, below what `data` names or that itself.

    Where the archive is unpacked as it is, the sound inner copy comes before the outer one.
    """
    root, name, level = Path(data).expanduser(), folder_name(size), level_name(contour_length)
    for place in (*(root / inside / name for inside in INSIDE), root):
        if (place / level / "metadata").is_dir():
            return place / level
    if root.name == level and (root / "metadata").is_dir():
        return root
    raise BadData(
        f"data: {root} has no {name}/{level}/metadata; allowed: the folder {name} of the release, or one that "
        f"holds it: {ARCHIVE} from {URL}"
    )


def tables(folder: Path) -> list[Path]:
    """The tables, by number."""
    found = [path for path in (folder / "metadata").iterdir() if path.suffix == ".npy"]
    odd = [path.name for path in found if not path.stem.isdigit()]
    if odd or not found:
        what = f"has a table called {shown(odd[0])}" if odd else "has no table"
        raise BadData(f"data: {folder / 'metadata'} {what}; allowed: 0.npy, 1.npy, ...")
    return sorted(found, key=lambda path: int(path.stem))


def rows(table: Path) -> Iterator[Row | BadData]:
    """The pictures of a table, or what is wrong with a row."""
    with open_binary(table) as file:
        data = b"".join(byte_lines(file, table))
    if data.startswith(b"\x93NUMPY"):
        yield from _saved(table)
        return
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise bad(
            table, 0, f"the byte {data[error.start]:#04x} at {error.start} is no text", "a table of text"
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(table, number, line.split())


def _saved(table: Path) -> Iterator[Row | BadData]:
    """A table as the generator itself saves it: numpy's format, an array of text."""
    found = arrays_of(table)[""]
    if found.ndim != 2:
        raise bad(table, 0, f"an array of shape {found.shape}", "a table of text")
    for number, row in enumerate(found, 1):
        yield _row(table, number, [str(value) for value in row])


def _row(table: Path, line: int, words: list[str]) -> Row | BadData:
    if len(words) < COLUMNS:
        return bad(table, line, f"{len(words)} columns", "folder, name, number, label and what follows")
    folder, name, _, label = words[:COLUMNS]
    if label not in ("0", "1"):
        return bad(table, line, f"label {shown(label)}", "0 or 1")
    if Path(folder).is_absolute() or ".." in Path(folder, name).parts:
        return bad(table, line, f"picture {shown(folder + '/' + name)}", "a path below the folder")
    return Row(folder, name, int(label), str(table), line)


def picture(folder: Path, row: Row, size: int) -> np.ndarray | BadData | None:
    """(size, size) uint8, or what is wrong with it; None for the one that is empty in the release."""
    from PIL import Image

    path = folder / row.folder / row.name
    where = f"{row.table}, line {row.line}: {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        return bad(where, 0, error.strerror or str(error), "the picture that this row names")
    if not data:
        known = (folder.name, row.folder, row.name) == EMPTY
        return None if known else bad(where, 0, "the file is empty", f"a picture of {size} x {size} pixels")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            found = np.asarray(opened.convert("L"))
    except Exception as error:  # decoders raise what they like
        return bad(where, 0, f"{type(error).__name__}: {error}", "a whole png file")
    if found.shape != (size, size):
        return bad(where, 0, f"{found.shape[1]} x {found.shape[0]} pixels", f"{size} x {size}")
    return found


def traced(folder: Path, size: int) -> Fit | None:
    """Whether labels fit pictures, measured on some; None where the size does not allow it or there are too few."""
    if size not in TRACED:
        return None
    found = [row for table in tables(folder)[:2] for row in rows(table) if isinstance(row, Row)]
    images = [(picture(folder, row, size), row.label) for row in found[:: max(1, len(found) // PICTURES)][:PICTURES]]
    sound = [(image, label) for image, label in images if isinstance(image, np.ndarray)]
    labels = np.array([label for _, label in sound])
    if len(sound) < 100 or not 0 < labels.mean() < 1:
        return None
    return fit(size, np.stack([image for image, _ in sound]), labels)


def broken_copy(folder: Path, measured: Fit) -> BadData:
    """What is said of labels that belong to other pictures."""
    inner = "lra_release/lra_release/pathfinder128"
    return BadData(
        f"data: {folder}: the labels do not belong to the pictures: of {measured.pictures} that were traced the discs "
        f"are linked in {measured.with_1:.0%} of those with label 1 and in {measured.with_0:.0%} of those with 0. "
        f"The archive holds Pathfinder-128 twice, and the outer copy is like that; allowed: the inner one, {inner}"
    )
