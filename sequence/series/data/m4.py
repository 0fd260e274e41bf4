"""The M4 competition: 100,000 series of six frequencies, one file each for training and for the test.

A row is a series: its name, then its values; shorter ones end in empty cells. `Hourly-train.csv`, `Hourly-test.csv`
and so on, plain or packed.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.data.faults import BadData, bad, open_binary, shown, table, text_lines
from sequence.series.data.sets import PACKED, VARIABLE

SOURCE = "https://github.com/Mcompetitions/M4-methods (folder Dataset)"
Part = Literal["train", "test"]


class Frequency(NamedTuple):
    """What the competition asks of its series of one frequency."""

    series: int
    horizon: int
    season: int
    """Of MASE and Naive2."""
    history: float
    """As published: training windows end within so many horizons of the end of a series."""


FREQUENCIES = {
    "Yearly": Frequency(23_000, 6, 1, 1.5),
    "Quarterly": Frequency(24_000, 8, 4, 1.5),
    "Monthly": Frequency(48_000, 18, 12, 1.5),
    "Weekly": Frequency(359, 13, 1, 10),
    "Daily": Frequency(4_227, 14, 1, 10),
    "Hourly": Frequency(414, 48, 24, 10),
}


class M4Data(NamedTuple):
    """Series by row: their names, what is known of each, and what is asked (n, horizon)."""

    names: tuple[str, ...]
    known: tuple[np.ndarray, ...]
    asked: np.ndarray


def located(frequency: str, part: Part, root: Path) -> Path | None:
    """A file in a folder, or in one of the folders there that people have it in."""
    inside = {"train": ("", "Train", "Dataset/Train"), "test": ("", "Test", "Dataset/Test")}[part]
    places = [root / top / folder for top in ("", "m4") for folder in inside]
    files = [place / f"{frequency}-{part}.csv{end}" for place in places for end in PACKED]
    return next((file for file in files if file.is_file()), None)


@checking_arguments()
def load(frequency: str, folder: Place = "") -> M4Data:
    """Both files of a frequency.

    Raises:
        BadData: for a file that is not there or not whole: the message says which to get, from where.
    """
    root = Path(folder or os.environ.get(VARIABLE, ".")).expanduser()
    found = {}
    for part in get_args(Part):
        path = located(frequency, part, root)
        if path is None:
            raise BadData(
                f"data: {root} has no {frequency}-{part}.csv; get it from {SOURCE}, and name its folder by "
                f"--task.folder or the variable {VARIABLE}"
            )
        found[part] = path
    states = tuple((path, path.stat().st_mtime_ns) for path in found.values())
    return _load(frequency, states)


@cache
def _load(frequency: str, states: tuple[tuple[Path, int], ...]) -> M4Data:
    (train, _), (test, _) = states
    asked_for = FREQUENCIES[frequency]
    known, asked = read(train), read(test)
    for path, rows in ((train, known), (test, asked)):
        if len(rows) != asked_for.series:
            raise BadData(
                f"data: {path} has {len(rows):,} series, the published file {asked_for.series:,}: it is cut short or "
                f"another file; allowed: that from {SOURCE}"
            )
    if list(known) != list(asked):
        raise BadData(f"data: {train} and {test} must name the same series in the same order, got others")
    for name, values in asked.items():
        if len(values) != asked_for.horizon:
            raise BadData(f"data: {test}, series {name}: {len(values)} values; allowed: {asked_for.horizon}")
    return M4Data(tuple(known), tuple(known.values()), np.stack(list(asked.values())))


def read(path: Path) -> dict[str, np.ndarray]:
    """The series of a file by name.

    Raises:
        BadData: with the line of what is no number.
    """
    found = {}
    with open_binary(path) as file:
        rows = table(text_lines(file, path), path)
        next(rows, None)  # V1, V2, ...
        for line, (name, *cells) in ((line, row or [""]) for line, row in rows):
            if name in found:
                raise bad(path, line, f"series {name} for the second time", "each series once")
            while cells and cells[-1] in ("", "NA"):
                cells.pop()
            try:
                values = np.array(cells, dtype=np.float64)
            except ValueError:
                wrong = next(cell for cell in cells if not _number(cell))
                raise bad(path, line, f"{shown(wrong)} in series {name}", "a number") from None
            if not len(values) or not np.isfinite(values).all():
                raise bad(path, line, f"series {name} has no value, or one that is not finite", "finite numbers")
            found[name] = values
    return found


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
