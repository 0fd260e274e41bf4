"""The data sets that studies of forecasting use: what their files hold, how they are divided, where they come from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from matmix.spec import hint
from sequence.data.faults import BadData
from sequence.series.data.table import Table, read_table

PACKED = ("", ".gz", ".bz2", ".xz")
VARIABLE = "MATMIX_DATA"
"""Names the folder where data sets are looked for by name."""
_ETT = "https://github.com/zhouhaoyi/ETDataset (folder ETT-small)"
_DRIVE = "https://drive.google.com/drive/folders/1ZOYpTUa82_jCcxIdTmyr0LXQfvaM9vIy (the Autoformer collection)"


@dataclasses.dataclass(frozen=True)
class SeriesSet:
    """A published file and the division that everybody uses."""

    name: str
    file: str
    """Without its ending."""
    rows: int
    columns: int
    """Besides the date."""
    period: int
    """Steps after which the season repeats: a day, of daily series a week, of weekly ones a year."""
    source: str = _DRIVE
    target: str = "OT"
    months: int = 0
    """Rows of a month of 30 days, where the division is 12, 4 and 4 of them; 0 = 70, 10 and 20 % of the rows."""
    folders: tuple[str, ...] = ()
    """What people call the folder it is in."""


SETS = {
    found.name: found
    for found in (
        *(SeriesSet(f"ETT{kind}", f"ETT{kind}", 17_420, 7, 24, _ETT, months=720, folders=("ett", "ETT-small"))
          for kind in ("h1", "h2")),
        *(SeriesSet(f"ETT{kind}", f"ETT{kind}", 69_680, 7, 96, _ETT, months=2880, folders=("ett", "ETT-small"))
          for kind in ("m1", "m2")),
        SeriesSet("Exchange", "exchange_rate", 7_588, 8, 7, folders=("exchange_rate",)),
        SeriesSet("Weather", "weather", 52_696, 21, 144, folders=("weather",)),
        SeriesSet("ECL", "electricity", 26_304, 321, 24, folders=("electricity",)),
        SeriesSet("Traffic", "traffic", 17_544, 862, 24, folders=("traffic",)),
        SeriesSet("ILI", "national_illness", 966, 7, 52, folders=("illness",)),
    )
}  # fmt: skip


def known(data: str) -> SeriesSet | None:
    """The data set behind a name, or behind the name of a file; None for a file that is none of them."""
    stem = Path(data).name
    for ending in (*PACKED[1:], ".csv"):
        stem = stem.removesuffix(ending)
    for found in SETS.values():
        if stem.casefold() in (found.name.casefold(), found.file.casefold()):
            return found
    return None


def located(found: SeriesSet, root: Path) -> Path | None:
    """Its file in a folder, or in one of the folders there that people have it in."""
    places = [root, *(root / folder for folder in found.folders)]
    files = [place / f"{found.file}.csv{end}" for place in places for end in PACKED]
    return next((file for file in files if file.is_file()), None)


@checking_arguments()
def load(data: Place, folder: Place = "", target: str = "") -> Table:
    """A data set by name or a csv file, its target behind all other columns.

    Args:
        data: one of `SETS`, or the path of a csv file.
        folder: where names are looked for; "" is the one that MATMIX_DATA names, else the current one.
        target: the column that goes last; "" is OT where there is one.

    Raises:
        BadData: for a file that is not there or not the published one: the message says which to get, from where.
        ValueError: for an unknown name.
    """
    found, path = known(data), Path(data).expanduser()
    if not path.is_file():
        if found is None:
            if path.suffix:
                raise BadData(f"data: there is no {path}; allowed: a csv file, or one of {', '.join(SETS)}")
            raise ValueError(f"data: unknown data set {data!r}{hint(data, SETS)}; or give a csv file")
        root = Path(folder or os.environ.get(VARIABLE, ".")).expanduser()
        place = located(found, root)
        if place is None:
            raise BadData(
                f"data: {root} has no {found.file}.csv; get it from {found.source}, and name its folder by "
                f"--task.folder or the variable {VARIABLE}"
            )
        path = place
    table = read_table(path)
    if found is not None:
        check_known(table, found, path)
    elif not target and "OT" not in table.columns:
        return table
    return table.last(target or "OT")


def check_known(table: Table, found: SeriesSet, path: Path) -> None:
    """Raise a BadData where a file is not the published one."""
    rows, columns = table.values.shape
    if (rows, columns) != (found.rows, found.columns):
        what = "cut short" if rows < found.rows and columns == found.columns else "another file"
        raise BadData(
            f"data: {path} has {rows:,} rows of {columns} columns, the published {found.file}.csv {found.rows:,} of "
            f"{found.columns}: it is {what}; get {found.file}.csv from {found.source}"
        )
    if found.target not in table.columns:
        raise BadData(f"data: {path} has no column {found.target}; get {found.file}.csv from {found.source}")
