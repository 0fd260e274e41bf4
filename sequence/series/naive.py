"""Forecasts and fillings that need no training, and their errors: what every table of time series should begin with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Errors = dict[str, dict[str, float]]


def forecast_errors(values: Tensor, origins: range, horizon: int, season: int) -> Errors:
    """MSE and MAE of naive forecasts over all windows, steps and columns.

    Args:
        values: scaled (n, C), so zeros are the mean of training.
        origins: the first row that each window has to forecast.
        horizon: how many rows.
        season: steps after which it repeats. Seasons that lie before what a model may read are seen too.
    """
    lags = {"zeros (the mean of training)": None, "last value": 1, f"last season ({season} steps)": season}
    found = {}
    for name, lag in lags.items():
        if lag is not None and lag > origins.start:
            continue
        squared = absolute = 0.0
        for step in range(horizon):  # by step, so that no window is made
            truth = values[origins.start + step : origins.stop + step]
            back = 0 if lag is None else lag - step % lag  # of the last season, the same phase
            error = truth if lag is None else truth - values[origins.start - back : origins.stop - back]
            squared += error.double().square().sum().item()
            absolute += error.double().abs().sum().item()
        count = len(origins) * horizon * values.shape[1]
        found[name] = {"mse": squared / count, "mae": absolute / count}
    return found


def fill(values: Tensor, observed: Tensor) -> dict[str, Tensor]:
    """Missing places of windows (B, L, C) by what is known beside them; a column with nothing known is 0."""
    steps = torch.arange(values.shape[1]).view(1, -1, 1).expand_as(values)
    before = torch.where(observed, steps, -1).cummax(1).values
    after = torch.where(observed, steps, values.shape[1]).flip(1).cummin(1).values.flip(1)
    has_before, has_after = before >= 0, after < values.shape[1]
    left = values.gather(1, before.clamp_min(0)) * has_before
    right = values.gather(1, after.clamp_max(values.shape[1] - 1)) * has_after
    share = (steps - before) / (after - before).clamp_min(1)
    line = torch.where(has_before & has_after, left + (right - left) * share, left + right)
    return {
        "zeros (the mean of training)": torch.zeros_like(values),
        "last value": torch.where(has_before, left, right),
        "a line between neighbours": line,
    }


def seasonal_naive(series: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The last season again; where there is none, the last value."""
    lag = season if len(series) >= season else 1
    return series[len(series) - lag + np.arange(horizon) % lag]


def naive2(series: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The competition's Naive2: the last value, without its season and with that of the steps to come.

    Where the autocorrelation at the season says with 90 % that there is one: a classical multiplicative decomposition.
    """
    if season < 2 or not _seasonal(series, season):
        return np.repeat(series[-1], horizon)
    factors = _factors(series, season)
    phases = np.arange(len(series) - 1, len(series) + horizon) % season
    return series[-1] / factors[phases[0]] * factors[phases[1:]]


def _seasonal(series: np.ndarray, season: int) -> bool:
    if len(series) < 3 * season:
        return False
    centred = series - series.mean()
    variance = centred @ centred
    if not variance > 0:
        return False
    correlations = np.array([centred[lag:] @ centred[:-lag] for lag in range(1, season + 1)]) / variance
    limit = 1.645 * np.sqrt((1 + 2 * np.square(correlations[:-1]).sum()) / len(series))
    return bool(abs(correlations[-1]) > limit)


def _factors(series: np.ndarray, season: int) -> np.ndarray:
    """By phase, the mean of the series over its moving average, their mean 1."""
    window = np.ones(season) / season
    if season % 2 == 0:
        window = np.concatenate(([0.5], np.ones(season - 1), [0.5])) / season
    trend = np.convolve(series, window, mode="valid")
    begin = len(window) // 2
    ratios = series[begin : begin + len(trend)] / trend
    phases = (begin + np.arange(len(trend))) % season
    means = np.bincount(phases, ratios, season) / np.bincount(phases, minlength=season)
    return means / means.mean()
