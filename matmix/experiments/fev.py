"""Results of a study as a table that fev reads: `fev.leaderboard("fev.csv", baseline_model="default")`.

A row is a task and a model: "itransformer: hydra" where the study has several models. fev wants errors, so an accuracy
is written as 1 - accuracy, and its metric says so. Predictors without training stand beside the arms.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

FORMAT = "0.9.0"
"""The version of fev whose columns these are; it refuses tables that name none."""


def fev_table(runs: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row a task and model, means over seeds.

    Args:
        runs: a row a run, with the columns of `verdicts`, and `seconds` of training, `horizon` and `windows` of the
            test (0 where there are none).
        baselines: scores by setting and name.
    """
    rows = []
    models = runs["model"].nunique() > 1
    scored = runs[runs["score"].notna()]
    for (_, arm), table in scored.groupby(["setting", "arm"], sort=False):
        first = table.iloc[0]
        named = f"{first['model']}: {arm}" if models and first["model"] else str(arm)
        rows.append({**_row(first, named, table["score"].mean()), "training_time_s": table["seconds"].mean()})
    for setting, table in scored.groupby("setting", sort=False):
        for name, score in baselines.get(str(setting), {}).items():
            rows.append({**_row(table.iloc[0], name, score), "training_time_s": 0.0})
    found = pd.DataFrame(rows)
    # Baselines of one task stand once, however many models met it.
    return found.drop_duplicates(["dataset_path", "dataset_config", "horizon", "model_name"]) if rows else found


def _row(first: pd.Series, name: str, score: float) -> dict[str, object]:
    rises = bool(first["higher_is_better"])
    words = [word for word in str(first["setting"]).split() if word != first["model"]]
    return {
        "model_name": name,
        "dataset_path": first["data"],
        "dataset_config": " ".join(words),
        "horizon": int(first["horizon"]),
        "eval_metric": f"1 - {first['metric']}" if rises else first["metric"],
        "quantile_levels": "[]",
        "test_error": 1 - score if rises else score,
        "inference_time_s": None,
        "trained_on_this_dataset": False,
        "num_forecasts": int(first["windows"]),
        "fev_version": FORMAT,
    }
