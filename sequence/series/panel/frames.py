"""Tables of time series as people have them, made into regular series: what is mended is said, the rest is refused.

A wide table has a column of dates and one column a series; a long one has `unique_id`, `ds` and `y`, as NeuralForecast
has it. Both become series on dates without gaps, where NaN stands for what was not observed.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from sequence.series.panel.dates import find_step, to_dates

Gaps = Literal["fill", "error"]
Duplicates = Literal["error", "mean", "first", "last"]
DATE_NAMES = ("ds", "date", "datetime", "time", "timestamp")
"""Names that a column of dates may have, in any case of letters."""
LONG = ("unique_id", "ds", "y")


class Mended(UserWarning):
    """Something in a table was mended, in the way that the documentation says."""


@dataclasses.dataclass
class Series:
    """C series side by side on the same T dates; `values` (T, C) has NaN where nothing was observed, `known` (T, K)
    are the covariates that are known ahead."""

    names: tuple[str, ...]
    dates: pd.DatetimeIndex
    values: np.ndarray
    known: np.ndarray

    def before(self, end: int) -> Series:
        """The first `end` steps."""
        return Series(self.names, self.dates[:end], self.values[:end], self.known[:end])


@dataclasses.dataclass
class Panel:
    """All series of a table, the step of their dates, and what was mended."""

    series: list[Series]
    freq: Any
    notes: list[str]


def read(
    frame: pd.DataFrame,
    *,
    freq: str | None = None,
    known: Sequence[str] = (),
    together: bool | None = None,
    gaps: Gaps = "fill",
    duplicates: Duplicates = "error",
) -> Panel:
    """The series of a wide or a long table.

    Args:
        freq: the step of the dates as pandas has it ("h", "D", "MS"); None finds it.
        known: names of columns that are no series but covariates, known for the time to forecast as well.
        together: the series stand side by side on common dates, as the channels of one; otherwise each by itself, from
            its own first date to its own last. None: together in a wide table, by themselves in a long one.
        gaps: what to do where a date or a value is absent: "fill" leaves NaN there, and says how many; or "error".
        duplicates: what to do where a date comes twice with different values. Equal rows count once in any case.

    Raises:
        ValueError: for a table that cannot be read so, naming the column or the series and the date.
    """
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise ValueError(f"frame must be a pandas table with rows, got {type(frame).__name__} of {np.shape(frame)}")
    twice = [str(name) for name, count in Counter(frame.columns).items() if count > 1]
    if twice:
        raise ValueError(f"frame has several columns of one name: {', '.join(twice)}")
    absent = [name for name in known if name not in frame.columns]
    if absent:
        raise ValueError(f"known={list(known)}: frame has no column {', '.join(map(repr, absent))}")
    long = "unique_id" in frame.columns
    notes: list[str] = []
    parts = _long(frame, known) if long else _wide(frame, known)
    parts = {name: _unique(name, part, duplicates, notes) for name, part in parts.items()}
    step = find_step([part.index for part in parts.values()], freq)
    if not long:
        (table,) = parts.values()
        names = [name for name in table.columns if name not in known]
        apart = names if together is False else []
        parts = {name: table[[name, *known]] for name in apart} or {"": table[[*names, *known]]}
    elif together:
        parts = {"": _side_by_side(parts, known)}
    regular = {name: _regular(part, step, name) for name, part in parts.items()}
    found = [_series(name, part, parts[name].index, known, gaps, notes) for name, part in regular.items()]
    return Panel(found, step, notes)


def say(notes: Iterable[str]) -> None:
    """Warn of what was mended."""
    for note in notes:
        warnings.warn(note, Mended, stacklevel=4)


# ------------------------------------------------------------------ the two forms


def _wide(frame: pd.DataFrame, known: Sequence[str]) -> dict[str, pd.DataFrame]:
    dates = [name for name in frame.columns if str(name).lower() in DATE_NAMES]
    if isinstance(frame.index, pd.DatetimeIndex) and not dates:
        index, columns = frame.index, list(frame.columns)
    elif len(dates) == 1:
        index, columns = frame[dates[0]], [name for name in frame.columns if name != dates[0]]
    else:
        raise ValueError(
            f"frame must have one column of dates, named {', '.join(DATE_NAMES)}, or dates as its index; its columns "
            f"are {', '.join(map(str, frame.columns))}"
        )
    if not set(columns) - set(known):
        raise ValueError(f"frame has no column of values; its columns are {', '.join(map(str, frame.columns))}")
    table = pd.DataFrame({str(name): _numbers(frame[name], str(name)) for name in columns})
    table.index = to_dates(index, "the column of dates")
    return {"": table}


def _long(frame: pd.DataFrame, known: Sequence[str]) -> dict[str, pd.DataFrame]:
    absent = [name for name in LONG if name not in frame.columns]
    others = [str(name) for name in frame.columns if name not in (*LONG, *known)]
    if absent or others:
        what = f"no column {', '.join(absent)}" if absent else f"columns that nothing is said of: {', '.join(others)}"
        raise ValueError(
            f"a table with unique_id has unique_id, ds and y, and covariates that known= names; this one has {what}"
        )
    if frame["unique_id"].isna().any():
        raise ValueError(f"unique_id is empty in row {int(np.argmax(frame['unique_id'].isna()))}")
    table = pd.DataFrame({name: _numbers(frame[name], name) for name in ("y", *known)})
    table.index = to_dates(frame["ds"], "ds")
    names = frame["unique_id"].astype(str).to_numpy()
    return {str(name): table[names == name] for name in dict.fromkeys(names)}


def _side_by_side(parts: dict[str, pd.DataFrame], known: Sequence[str]) -> pd.DataFrame:
    """The series of a long table as the columns of a wide one; covariates must not differ between them."""
    columns = {name: part["y"] for name, part in parts.items()}
    for covariate in known:
        found = pd.concat([part[covariate] for part in parts.values()])
        if (found.groupby(level=0).nunique() > 1).any():
            raise ValueError(f"together=True: the covariate {covariate!r} differs between series at one date")
        columns[covariate] = found[~found.index.duplicated()]
    return pd.DataFrame(columns).sort_index()


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    try:
        values = pd.to_numeric(column, errors="raise").to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {name!r} is not of numbers: {error}") from None
    if np.isinf(values).any():
        raise ValueError(f"column {name!r} is infinite in row {int(np.argmax(np.isinf(values)))}")
    return values


# ------------------------------------------------------------------ regular dates


def _unique(name: str, part: pd.DataFrame, duplicates: Duplicates, notes: list[str]) -> pd.DataFrame:
    """In the order of the dates, each once."""
    where = f"series {name!r}: " if name else ""
    if not part.index.is_monotonic_increasing:
        notes.append(f"{where}the dates were not in order; they are sorted")
        part = part.sort_index(kind="stable")
    if part.index.is_unique:
        return part
    again = part.reset_index(names="ds").duplicated().to_numpy()
    if again.any():
        notes.append(f"{where}{int(again.sum())} rows stand twice, all equal; each counts once")
        part = part[~again]
    if part.index.is_unique:
        return part
    double = part.index.duplicated(keep=False)
    if duplicates == "error":
        raise ValueError(
            f"{where}{part.index[double].nunique()} dates come twice with different values, the first is "
            f"{part.index[double][0]}; duplicates= says what counts: mean, first or last"
        )
    notes.append(
        f"{where}{part.index[double].nunique()} dates came twice with different values; the {duplicates} counts"
    )
    groups = part.groupby(level=0)
    return groups.mean() if duplicates == "mean" else part[~part.index.duplicated(keep=duplicates)]


def _regular(part: pd.DataFrame, step: Any, name: str) -> pd.DataFrame:
    grid = pd.date_range(part.index[0], part.index[-1], freq=step)
    off = part.index.difference(grid)
    if len(off):
        where = f"series {name!r}: " if name else ""
        raise ValueError(
            f"{where}{len(off)} of {len(part)} dates are not in steps of {step.freqstr} from {part.index[0]}: the "
            f"first is {off[0]}; freq= gives another step, frame.resample makes regular dates"
        )
    return part.reindex(grid)


def _series(
    name: str, part: pd.DataFrame, rows: pd.Index, known: Sequence[str], gaps: Gaps, notes: list[str]
) -> Series:
    names = (name,) if name else tuple(str(column) for column in part.columns if column not in known)
    values = part.drop(columns=list(known)).to_numpy(dtype=np.float64)
    empty = [one for one, column in zip(names, values.T, strict=True) if np.isnan(column).all()]
    if empty:
        raise ValueError(f"there is no value at all in series {', '.join(empty)}")
    if len(names) == 1:  # by itself, a series begins with its first value
        first = int(np.argmax(~np.isnan(values[:, 0])))
        part, values = part.iloc[first:], values[first:]
    where = f"series {names[0]!r}" if len(names) == 1 else "the table"
    absent, missing = int((~part.index.isin(rows)).sum()), int(np.isnan(values).sum())
    if missing:
        what = f"{where}: {missing} of {values.size} values are not there ({absent} dates and what is empty)"
        if gaps == "error":
            place = int(np.argmax(np.isnan(values).any(1)))
            raise ValueError(f"{what}, the first at {part.index[place]}; gaps='fill' fills them")
        notes.append(f"{what}; inputs are filled, and no forecast is measured there")
    covariates = part[list(known)]
    if covariates.isna().any().any():
        count = int(covariates.isna().any(axis=1).sum())
        notes.append(f"{where}: known covariates are not there at {count} dates; the last one holds on")
        covariates = covariates.ffill().bfill()
    return Series(names, pd.DatetimeIndex(part.index), values, covariates.to_numpy(dtype=np.float64))
