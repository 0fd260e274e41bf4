"""Scores of forecasts whose truth is known, by utilsforecast, and forecasts that need no training to compare with."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

KEYS = ("unique_id", "ds", "cutoff", "y")


def with_seasonal_naive(table: pd.DataFrame, history: pd.DataFrame, season: int) -> pd.DataFrame:
    """A table of `cross_validation` with a column `seasonal-naive`: the value of the last season that was read.

    Args:
        table: of `cross_validation`.
        history: long (unique_id, ds, y), without gaps in its dates.
        season: steps of a season; 1 repeats the last value.

    Raises:
        ValueError: where a value that is to be repeated is absent.
    """
    by_name = {name: part.sort_values("ds") for name, part in history.groupby("unique_id")}
    found = []
    for (name, cutoff), part in table.groupby(["unique_id", "cutoff"], sort=False):
        past = by_name[name]
        past = past[past["ds"] <= cutoff]["y"].ffill().to_numpy()[-season:]
        if len(past) < season or np.isnan(past).any():
            raise ValueError(f"series {name!r} has no whole season of {season} steps before {cutoff}")
        found.append(part.assign(**{"seasonal-naive": past[np.arange(len(part)) % season]}))
    return pd.concat(found).sort_index()


def scores(table: pd.DataFrame, history: pd.DataFrame | None = None, season: int = 1) -> pd.DataFrame:
    """Scores by series of each column of forecasts in a table of `cross_validation`: mae, rmse, mase where a history
    gives its scale, and scaled_crps of the columns that are quantiles. Rows whose truth is absent do not count.

    Args:
        table: unique_id, ds, cutoff, y, and forecasts: columns NAME, and NAME-q0.1 and so on.
        history: what came before all cutoffs, long, for mase.
        season: steps of a season, for mase.

    Raises:
        ValueError: where utilsforecast is not installed.
    """
    from matmix.experiments.extras import require

    require("utilsforecast")
    from utilsforecast import losses

    table = table[table["y"].notna()].drop(columns="cutoff")  # one score over all ends of the history
    quantiles = {name: name.rpartition("-q") for name in table.columns if "-q" in name}
    models = [name for name in table.columns if name not in (*KEYS, *quantiles)]
    measures = {"mae": losses.mae, "rmse": losses.rmse}
    if history is not None:
        measures["mase"] = partial(losses.mase, seasonality=season, train_df=history[history["y"].notna()])
    found = [measure(table, models=models).assign(metric=name) for name, measure in measures.items()]
    for model in models:
        levels = {name: float(level) for name, (head, _, level) in quantiles.items() if head == model}
        if levels:
            crps = losses.scaled_crps(table, models={model: list(levels)}, quantiles=np.array(list(levels.values())))
            found.append(crps.assign(metric="scaled_crps"))
    return pd.concat(found, ignore_index=True)[["unique_id", "metric", *models]]
