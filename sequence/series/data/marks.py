"""What a model is told of the time of a step: hour, weekday and the like as numbers from -0.5 to 0.5."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

Frequency = Literal["s", "t", "h", "d", "w", "m"]
"""Seconds, minutes, hours, days (business days too), weeks, months or more."""
_FEATURES: dict[Frequency, tuple[str, ...]] = {
    "s": ("second", "minute", "hour", "day_of_week", "day", "day_of_year"),
    "t": ("minute", "hour", "day_of_week", "day", "day_of_year"),
    "h": ("hour", "day_of_week", "day", "day_of_year"),
    "d": ("day_of_week", "day", "day_of_year"),
    "w": ("day", "week"),
    "m": ("month",),
}
_RANGE = {
    "second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day_of_week": (0, 6), "day": (1, 30),
    "day_of_year": (1, 365), "week": (1, 52), "month": (1, 11),
}  # fmt: skip
"""The first value and the width: of 31 days the last is 0.5, of 366 and of a week 53 it lies above."""
_LONGEST: dict[Frequency, pd.Timedelta] = {
    "s": pd.Timedelta(minutes=1), "t": pd.Timedelta(hours=1), "h": pd.Timedelta(days=1), "d": pd.Timedelta(days=7),
    "w": pd.Timedelta(days=28),
}  # fmt: skip


def frequency_of(dates: pd.DatetimeIndex) -> Frequency:
    """By the usual step between rows."""
    step = usual_step(dates)
    return next((name for name, end in _LONGEST.items() if step < end), "m")


def usual_step(dates: pd.DatetimeIndex) -> pd.Timedelta:
    """The one that comes most often."""
    if len(dates) < 2:
        raise ValueError(f"a step needs two time stamps, got {len(dates)}")
    return pd.Series(dates).diff().dropna().mode().iloc[0]


def season_of(dates: pd.DatetimeIndex) -> int:
    """Steps after which a season repeats: a day, of daily series a week, of weekly and monthly ones a year."""
    step, frequency = usual_step(dates), frequency_of(dates)
    whole = {"d": pd.Timedelta(days=7), "w": pd.Timedelta(days=364), "m": pd.Timedelta(days=365)}
    return max(1, round(whole.get(frequency, pd.Timedelta(days=1)) / step))


def features(frequency: Frequency) -> tuple[str, ...]:
    """The names of the columns of `marks`."""
    return _FEATURES[frequency]


def marks(dates: pd.DatetimeIndex, frequency: Frequency) -> np.ndarray:
    """Features (n, K) of time stamps."""
    columns = []
    for name in _FEATURES[frequency]:
        found = dates.isocalendar().week if name == "week" else getattr(dates, name)
        first, width = _RANGE[name]
        columns.append((np.asarray(found, dtype=np.float64) - first) / width - 0.5)
    return np.stack(columns, axis=-1)
