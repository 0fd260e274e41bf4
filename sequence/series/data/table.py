"""A csv file with a column of dates and columns of numbers: read, and held to what a series is."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from matmix.spec import hint
from sequence.data.faults import UNREADABLE, BadData, bad, open_binary, shown, state_of

DATES = ("date", "datetime", "timestamp", "time", "ds")
"""What a column of dates may be called, in any case."""
POINTER = b"version https://git-lfs"
"""How the file begins that stands in a repository for one that is stored elsewhere."""


class Table(NamedTuple):
    """Series side by side: values (n, C), the time of each row, the name of each column."""

    values: np.ndarray
    dates: pd.DatetimeIndex
    columns: tuple[str, ...]
    facts: dict[str, Any]
    """What a reader must know: odd names, gaps, time stamps that stand twice."""

    def last(self, target: str) -> Table:
        """The same with the column `target` behind all others.

        Raises:
            BadData: where it is not there.
        """
        if target not in self.columns:
            raise BadData(f"target: there is no column {target!r}{hint(target, self.columns)}")
        order = [*(name for name in self.columns if name != target), target]
        return self._replace(values=self.values[:, [*map(self.columns.index, order)]], columns=tuple(order))


def read_table(path: Path) -> Table:
    """A csv file, plain or packed (gz, bz2, xz); read once as long as it does not change.

    Rows stay as they are: none is filled in or left out. Gaps and time stamps that stand twice are counted.

    Raises:
        BadData: with file, line and value, for what is no number, a missing value, a date that nobody can read, dates
            that go back, or a file that is cut short.
    """
    return _read(path, *state_of(path))


@cache
def _read(path: Path, changed: int, size: int) -> Table:
    facts: dict[str, Any] = {}
    frame = _frame(path, facts)
    column = next((name for name in frame.columns if str(name).strip().casefold() in DATES), None)
    if column is None:
        known = ", ".join(map(str, list(frame.columns)[:8]))
        raise bad(path, 1, f"no column of dates among {known}", f"one that is called {', '.join(DATES)}")
    numbers = frame.drop(columns=column)
    if not len(numbers) or not len(numbers.columns):
        raise bad(path, 1, f"{len(frame)} rows, {len(numbers.columns)} columns besides {column}", "at least 1 of each")
    values = np.empty(numbers.shape, dtype=np.float64)
    for index, name in enumerate(numbers.columns):
        values[:, index] = _numbers(path, name, numbers[name])
    dates = _dates(path, column, frame[column])
    facts.update(_steps(dates))
    names = tuple(str(name) for name in numbers.columns)
    odd = [name for name in names if "\ufffd" in name]
    if odd:
        facts["column names with lost letters"] = odd
    values.flags.writeable = False  # several tasks share it
    return Table(values, dates, names, facts)


def _frame(path: Path, facts: dict[str, Any]) -> pd.DataFrame:
    try:
        with open_binary(path) as file:
            content = file.read()
    except UNREADABLE as error:
        raise bad(path, 0, f"it cannot be read to its end: {error}", "a whole file; get it again") from None
    if content.startswith(POINTER):
        raise bad(path, 0, "a pointer of Git LFS, not the data that it stands for", "the file itself (git lfs pull)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # degrees and micro signs, as measuring stations write them
        facts["encoding"] = "latin-1"
    try:
        return pd.read_csv(StringIO(text))
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise bad(path, 0, str(error).strip(), "rows of a csv file, a header first") from None


def _numbers(path: Path, name: Hashable, column: pd.Series) -> np.ndarray:
    found = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        value = column.iloc[wrong[0]]
        what = f"no value in column {name}" if pd.isna(value) else f"{shown(value)} in column {name}"
        more = f", and {len(wrong) - 1} more in it" if len(wrong) > 1 else ""
        # A header, and lines are counted from 1.
        raise bad(path, int(wrong[0]) + 2, what + more, "a finite number; fill in or leave out what was not measured")
    return found


def _dates(path: Path, name: Hashable, column: pd.Series) -> pd.DatetimeIndex:
    try:
        parsed = pd.to_datetime(column)
    except (ValueError, TypeError):
        parsed = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
        wrong = np.flatnonzero(parsed.isna())
        if len(wrong):
            line, value = int(wrong[0]) + 2, shown(column.iloc[wrong[0]])
            raise bad(path, line, f"{value} in column {name}", "a date, such as 2016-07-01 13:00") from None
        raise bad(path, 0, f"column {name} has dates of several time zones or forms", "one") from None
    if pd.api.types.is_numeric_dtype(column):
        raise bad(path, 2, f"the number {column.iloc[0]} in column {name}", "a date, such as 2016-07-01 13:00")
    if parsed.isna().any():
        raise bad(path, int(np.flatnonzero(parsed.isna())[0]) + 2, f"no value in column {name}", "a date")
    dates = pd.DatetimeIndex(parsed)
    back = np.flatnonzero(np.diff(dates.asi8) < 0)
    if len(back):
        line = int(back[0]) + 3
        raise bad(path, line, f"{column.iloc[back[0] + 1]} after {column.iloc[back[0]]}", "rows in the order of time")
    return dates


def _steps(dates: pd.DatetimeIndex) -> dict[str, Any]:
    """How far rows are apart where they are not evenly spaced."""
    steps = pd.Series(dates).diff().dropna()
    if not len(steps) or (steps == steps.iloc[0]).all():
        return {}
    usual = steps.mode().iloc[0]
    found = {"usual step": str(usual)}
    twice, gaps = int((steps == pd.Timedelta(0)).sum()), int((steps > usual).sum())
    counted = {"time stamps that stand twice": twice, "gaps": gaps}
    return {**found, **{name: count for name, count in counted.items() if count}}
