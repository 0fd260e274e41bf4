"""What a table of scores over seeds and tasks allows to be said, and when it is too small to say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from matmix.experiments.equivalence import holm

if TYPE_CHECKING:
    import pandas as pd

# The smallest p of a two-sided signed-rank test on n blocks is 2 / 2^n: below six it cannot reach 0.05, and the
# chi-square approximation of Friedman's test is no better there.
MIN_BLOCKS = 6


@dataclass(frozen=True)
class Summary:
    """Mean and spread (sample standard deviation, None for one value) of ``n`` values."""

    n: int
    mean: float
    spread: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its confidence interval; the interval is None for fewer than two pairs."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool | None:
        """True where the interval leaves out zero; None where there is no interval."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Ranks:
    """Ranks of arms over blocks: 1 is best, ties share their mean rank."""

    average: dict[str, float]
    blocks: int
    p: float | None  # of the global test (or the only pair); None where there are too few blocks for one
    pairs: dict[tuple[str, str], float]  # adjusted p-value of every pair
    note: str  # the method, or why there is no test

    def differs(self, first: str, second: str, level: float = 0.05) -> bool | None:
        """Whether the adjusted test tells two arms apart; None where there is no test."""
        p = self.pairs.get((first, second), self.pairs.get((second, first)))
        return None if p is None or self.p is None else self.p < level and p < level


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation.

    Raises:
        ValueError: if there is no value, or one that is not finite (a diverged run has no score).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values must be finite and at least one, got {list(values)}")
    return Summary(array.size, float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """``arm - reference`` over the seeds that both have, with Student's t interval (n - 1 degrees of freedom).

    The interval speaks of one comparison and of new seeds of the same task; it assumes nearly normal differences.
    None where no seed is shared.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    seeds = sorted(arm.keys() & reference.keys())
    if not seeds:
        return None
    differences = np.array([arm[seed] - reference[seed] for seed in seeds], dtype=np.float64)
    mean, n = float(differences.mean()), len(seeds)
    if n < 2:
        return Difference(n, mean, None, None)
    half = t_factor(n, confidence) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half)


def t_factor(n: int, confidence: float = 0.95) -> float:
    """The number of standard errors that the interval over ``n`` pairs reaches to each side."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, n - 1))


def rank(table: pd.DataFrame, *, higher_is_better: bool = True, nemenyi: bool = False) -> Ranks:
    """Rank arms (columns) within blocks (rows) and test, corrected for the number of comparisons.

    Three arms or more: Friedman's test, then Wilcoxon's signed-rank test of all pairs with Holm's correction. Two arms:
    Wilcoxon's test. Fewer than ``MIN_BLOCKS`` blocks: average ranks without a test. Blocks should be independent: data
    sets, or seeds for a statement on one task.

    Args:
        table: a score of every arm in every block.
        nemenyi: Nemenyi's test for the pairs. What it says of two arms depends on which others are in the table.

    Raises:
        ValueError: for missing scores (drop the arm or the block first) or fewer than two arms.
    """
    if table.shape[1] < 2 or table.shape[0] < 1:
        raise ValueError(
            f"ranks need two arms and a block at least, got {table.shape[1]} arms, {table.shape[0]} blocks"
        )
    if not np.isfinite(table.to_numpy(dtype=np.float64)).all():
        raise ValueError("ranks need a score of every arm in every block; leave out incomplete arms or blocks")
    names = [str(name) for name in table.columns]
    scores = table.to_numpy(dtype=np.float64)
    ranks = table.rank(axis=1, ascending=not higher_is_better).mean().to_numpy()
    average = dict(zip(names, map(float, ranks), strict=True))
    blocks = len(scores)
    if blocks < MIN_BLOCKS:
        note = f"{blocks} block{'s' * (blocks > 1)}: average ranks only, a test needs at least {MIN_BLOCKS}"
        return Ranks(average, blocks, None, {}, note)
    if (scores == scores[:, :1]).all():
        return Ranks(average, blocks, 1.0, dict.fromkeys(combinations(names, 2), 1.0), "all scores are equal")

    from scipy.stats import friedmanchisquare, wilcoxon

    if len(names) == 2:
        p = float(wilcoxon(scores[:, 0], scores[:, 1]).pvalue)
        return Ranks(average, blocks, p, {(names[0], names[1]): p}, f"Wilcoxon signed-rank test over {blocks} blocks")

    p = float(friedmanchisquare(*scores.T).pvalue)
    at = list(combinations(range(len(names)), 2))
    if nemenyi:
        from scikit_posthocs import posthoc_nemenyi_friedman

        matrix = posthoc_nemenyi_friedman(scores).to_numpy()
        found, how = [float(matrix[i, j]) for i, j in at], "Nemenyi for pairs"
    else:
        raw = [
            float(wilcoxon(a, b).pvalue) if (a != b).any() else 1.0
            for a, b in ((scores[:, i], scores[:, j]) for i, j in at)
        ]
        found, how = holm(np.array(raw)).tolist(), "Wilcoxon signed-rank with Holm's correction for pairs"
    pairs = {(names[i], names[j]): value for (i, j), value in zip(at, found, strict=True)}
    return Ranks(average, blocks, p, pairs, f"Friedman test, {how}, over {blocks} blocks")
