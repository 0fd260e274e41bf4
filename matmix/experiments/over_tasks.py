"""What a study says over its data sets: signed-rank tests against the reference, skill score and win rate.

The horizons of one data set, and its models, are no new evidence about data: a data set is one block in every test and
in every resample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from matmix.experiments.blocks import expanded_levels
from matmix.experiments.equivalence import holm
from matmix.experiments.statistics import MIN_BLOCKS
from matmix.experiments.verdicts import Verdict

RESAMPLES = 1000
CLIP = 0.01, 100.0
"""Ratios of errors are held within these, as fev does: one task on which an error is 0 would decide the mean."""


@dataclass(frozen=True)
class OverData:
    """One arm against the reference over data sets."""

    arm: str
    blocks: int
    change: float
    """Mean over data sets of the change of the score, as a share of the reference's."""
    p: float
    """Of Wilcoxon's signed-rank test, adjusted by Holm over the arms; NaN with fewer than six data sets."""


@dataclass(frozen=True)
class Skill:
    """An arm over all tasks, with 95 % intervals of a bootstrap over data sets."""

    arm: str
    skill: tuple[float, float, float]
    """1 - geometric mean of its error over that of the reference: value, low, high."""
    wins: tuple[float, float, float]
    """The share of tasks and other arms that it beats, ties counted half."""


def over_data(found: Sequence[Verdict]) -> list[OverData]:
    """The test of each arm; the changes of a data set, over its models and horizons, are averaged first."""
    from scipy.stats import wilcoxon

    rows = [(one.arm, one.data, one.share(one.mean)) for one in found if math.isfinite(one.mean) and one.base]
    table = pd.DataFrame(rows, columns=["arm", "data", "change"])
    means = table.groupby(["arm", "data"], sort=False)["change"].mean()
    arms = list(dict.fromkeys(table["arm"]))
    raw = []
    for arm in arms:
        changes = means[arm].to_numpy()
        tested = len(changes) >= MIN_BLOCKS
        raw.append(float(wilcoxon(changes).pvalue) if tested and changes.any() else 1.0 if tested else math.nan)
    adjusted = holm(np.array(raw, np.float64))
    return [
        OverData(arm, len(means[arm]), float(means[arm].mean()), float(p))
        for arm, p in zip(arms, adjusted, strict=True)
    ]


def errors(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean error of every arm (columns) on every setting (rows); the level "data" of the index says its block.

    An accuracy becomes 1 - accuracy. Left out: a setting whose scores rise and are no shares, one with a score that is
    not positive, and one where an arm has no score.
    """
    scored = runs[np.isfinite(runs["score"])]
    means = scored.pivot_table(index=["data", "setting"], columns="arm", values="score", aggfunc="mean", sort=False)
    rises = scored.groupby(["data", "setting"], sort=False)["higher_is_better"].first()
    rises = rises.reindex(means.index).to_numpy(dtype=bool)
    values = means.to_numpy(dtype=np.float64)
    values = np.where(rises[:, None], 1 - values, values)
    whole = np.isfinite(values).all(1) & (values > 0).all(1) & ~(rises & (values > 1).any(1))
    return pd.DataFrame(values, means.index, [str(name) for name in means.columns])[whole]


def skills(table: pd.DataFrame, reference: str, seed: int = 0) -> list[Skill]:
    """Skill score and win rate of every arm of a table of `errors`, best skill first."""
    if reference not in table.columns or len(table.columns) < 2 or not len(table):
        return []
    values = table.to_numpy()
    ratios = np.log(np.clip(values / table[[reference]].to_numpy(), *CLIP))
    beats = (values[:, :, None] < values[:, None, :]) + 0.5 * (values[:, :, None] == values[:, None, :])
    others = 1 - np.eye(len(table.columns))
    wins = (beats * others).sum(2) / others.sum(1)
    blocks = pd.factorize(table.index.get_level_values("data"))[0]
    counts = np.bincount(blocks)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (RESAMPLES, len(counts)))
    times = np.stack([np.bincount(one, minlength=len(counts)) for one in drawn])  # how often each block was drawn
    tasks, ends = times @ counts, expanded_levels(len(counts))
    found = []
    for at, arm in enumerate(table.columns):
        pair = []
        for column, made in ((ratios[:, at], lambda mean: 1 - np.exp(mean)), (wins[:, at], lambda mean: mean)):
            sums = np.bincount(blocks, column)
            low, high = np.quantile(made(times @ sums / tasks), ends)
            pair.append((float(made(column.mean())), float(low), float(high)))
        found.append(Skill(str(arm), *pair))
    return sorted(found, key=lambda one: -one.skill[0])
