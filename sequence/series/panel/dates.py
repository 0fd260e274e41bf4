"""Dates of a table: read, and the step in which they go on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def to_dates(column: Any, name: str) -> pd.DatetimeIndex:
    """A column as dates of one time zone, or of none.

    Raises:
        ValueError: for numbers, what is no date, nothing in a row, and several time zones.
    """
    values = pd.Series(np.asarray(column, dtype=object)) if not hasattr(column, "dtype") else pd.Series(column)
    if pd.api.types.is_numeric_dtype(values.dtype):
        raise ValueError(f"{name} must be dates, got numbers such as {values.iloc[0]}; pandas.date_range makes dates")
    if values.isna().any():
        raise ValueError(f"{name} has no date in row {int(np.argmax(values.isna()))}")
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        # One by one where they are not all of one form; the reader of pandas would keep objects, or give up.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                values = pd.to_datetime(values)
        except (ValueError, TypeError, Warning):
            values = pd.Series(_one_by_one(values, name))
    return pd.DatetimeIndex(values)


def _one_by_one(values: pd.Series, name: str) -> pd.DatetimeIndex:
    found, zones = [], Counter[str]()
    for row, value in enumerate(values):
        try:
            found.append(pd.Timestamp(value))
        except (ValueError, TypeError):
            raise ValueError(f"{name} has no date in row {row}, but {value!r}") from None
        zones[str(found[-1].tzinfo) if found[-1].tzinfo else "none"] += 1
    if len(zones) > 1:
        counted = ", ".join(f"{zone} ({count} rows)" for zone, count in zones.most_common())
        raise ValueError(
            f"{name} has several time zones: {counted}. Make it one first: pandas.to_datetime(column, utc=True), "
            "with tz_convert for local time"
        )
    return pd.DatetimeIndex(found)


def to_step(freq: str) -> Any:
    """A step by pandas' name of it, in the spelling of an older or a newer pandas too.

    Raises:
        ValueError: for one that pandas does not know.
    """
    renamed = {"H": "h", "T": "min", "S": "s", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE"}
    head, dash, tail = freq.partition("-")
    digits = head.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    letters = head[len(digits) :]
    other = {**{new: old for old, new in renamed.items()}, **renamed}.get(letters, letters)
    for spelling in (freq, f"{digits}{other}{dash}{tail}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            try:
                return pd.tseries.frequencies.to_offset(spelling)
            except ValueError:
                continue
    raise ValueError(f"freq={freq!r} is no step that pandas knows; such as h, 15min, D, W-SUN, MS")


def find_step(indices: Sequence[pd.DatetimeIndex], freq: str | None) -> Any:
    """The step of some dates, each in order: the one of most of their stretches without a gap.

    Raises:
        ValueError: where no three dates follow one.
    """
    if freq is not None:
        return to_step(freq)
    for size in (0, 12, 6, 3):  # 0: the whole of each, which has no gap as a rule
        votes: Counter[str] = Counter()
        for index in indices:
            starts = np.unique(np.linspace(0, max(0, len(index) - size), 20).astype(int)) if size else (0,)
            for start in starts if len(index) >= 3 else ():
                found = _inferred(index[start : start + (size or len(index))])
                if found is not None:
                    votes[found] += 1
        if votes:
            return to_step(votes.most_common(1)[0][0])
    first = next((index for index in indices if len(index)), pd.DatetimeIndex([]))
    raise ValueError(
        f"the dates follow no regular step (the first are {', '.join(map(str, first[:3]))}); freq= says which it is, "
        "as in freq='D'"
    )


def _inferred(dates: pd.DatetimeIndex) -> str | None:
    """The step of these dates; pandas 4 gives an object for what older ones name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found: Any = pd.infer_freq(dates)
    return getattr(found, "freqstr", found)
