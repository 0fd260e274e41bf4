"""Over data sets: against scipy and hand-worked cases."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from matmix.experiments.fev import fev_table
from matmix.experiments.over_tasks import errors, over_data, skills
from matmix.experiments.verdicts import COLUMNS, verdicts


def made(data: int, arms=("r", "a", "b"), horizons=(96, 192), models=("m", "n")) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    rows = [
        (f"d{d} {model} {horizon}", model, f"d{d}", arm, seed,
         0.3 + 0.1 * d + 0.01 * arms.index(arm) * generator.random(), "finished", "mse", False)
        for d in range(data) for model in models for horizon in horizons for arm in arms for seed in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_data_set_is_one_block_whatever_its_horizons_and_models():
    found = verdicts(made(7), "r", 0.01)
    tests = {one.arm: one for one in over_data(found)}
    raw = []
    for arm in ("a", "b"):
        means = [
            np.mean([v.share(v.mean) for v in found if v.arm == arm and v.data == f"d{d}"]) for d in range(7)
        ]  # of four settings each
        assert tests[arm].blocks == 7 and tests[arm].change == pytest.approx(np.mean(means))
        raw.append(scipy.stats.wilcoxon(means).pvalue)
    adjusted = multipletests(raw, method="holm")[1]
    assert [tests["a"].p, tests["b"].p] == pytest.approx(list(adjusted))
    assert all(math.isnan(one.p) for one in over_data(verdicts(made(5), "r", 0.01)))
    assert over_data([]) == []


def test_skill_and_win_rate_by_hand():
    index = pd.MultiIndex.from_tuples([("d0", "s0"), ("d1", "s1")], names=["data", "setting"])
    table = pd.DataFrame({"r": [0.4, 0.1], "a": [0.2, 0.2], "b": [0.4, 0.05]}, index)
    found = {one.arm: one for one in skills(table, "r")}
    # Ratios of a: 1/2 and 2, geometric mean 1; of b: 1 and 1/2, geometric mean sqrt(1/2).
    assert [found[arm].skill[0] for arm in ("r", "a", "b")] == pytest.approx([0, 0, 1 - math.sqrt(0.5)])
    # First task: a beats both, r and b tie; second: b beats both, r beats a.
    assert [found[arm].wins[0] for arm in ("r", "a", "b")] == pytest.approx([3 / 8, 1 / 2, 5 / 8])
    # Of two blocks a resample holds the first, both, or the second; their quantiles are the ends.
    assert found["a"].skill[1:] == pytest.approx((-1, 0.5)) and found["b"].wins[1:] == pytest.approx((1 / 4, 1))
    assert next(iter(found)) == "b" and skills(table, "absent") == []


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [8, 30])
def test_the_bootstrap_over_data_sets_covers(blocks):
    generator = np.random.default_rng(0)
    count, inside = 1000, 0
    index = pd.MultiIndex.from_tuples([(f"d{i}", f"s{i}") for i in range(blocks)], names=["data", "setting"])
    for seed in range(count):
        change = 0.05 + 0.1 * generator.normal(size=blocks)  # of the log ratio, one a data set
        found = skills(pd.DataFrame({"r": 1.0, "a": np.exp(change)}, index), "r", seed)
        one = next(one for one in found if one.arm == "a")
        inside += one.skill[1] <= 1 - math.exp(0.05) <= one.skill[2]
    assert 0.93 <= inside / count <= 0.97


def test_what_has_no_error_is_left_out():
    table = made(2, horizons=(96,), models=("m",))
    table.loc[table["data"] == "d1", "higher_is_better"] = True
    found = errors(table)
    np.testing.assert_allclose(
        found.loc[("d1", "d1 m 96"), "a"], 1 - table[(table["data"] == "d1") & (table["arm"] == "a")]["score"].mean()
    )
    table.loc[table["data"] == "d1", "score"] *= 10  # R^2, rewards: no share
    table.loc[(table["data"] == "d0") & (table["arm"] == "a"), "score"] = math.nan
    assert len(errors(table)) == 0


def test_a_table_for_fev():
    runs = made(2).assign(seconds=2.0, horizon=96, windows=10)
    found = fev_table(runs, {setting: {"last day": 0.5} for setting in runs["setting"]})
    assert len(found) == 2 * 2 * (2 * 3 + 1)  # data sets, horizons; models x arms and the baseline once
    assert not found.duplicated(["dataset_path", "dataset_config", "model_name"]).any()
    one = found[(found["dataset_config"] == "d0 96") & (found["model_name"] == "n: a")].iloc[0]
    mean = runs[(runs["setting"] == "d0 n 96") & (runs["arm"] == "a")]["score"].mean()
    assert (one["test_error"], one["eval_metric"], one["num_forecasts"]) == (pytest.approx(mean), "mse", 10)
    rises = fev_table(runs.assign(higher_is_better=True, metric="accuracy"), {})
    assert set(rises["eval_metric"]) == {"1 - accuracy"} and rises["test_error"].between(0, 1).all()
