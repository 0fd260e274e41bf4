"""Whether two arms are equivalent within a margin, or differ, and how many more seeds would tell.

Every function takes arrays with one column a comparison, so that thousands of cells cost what one does.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.05
POWER = 0.8
MIN_SEEDS = 3
"""Of two pairs the interval reaches 6.3 standard errors to each side (90 %), and their spread is one number: no verdict
rests on that."""
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Comparison:
    """Paired differences `arm - reference` over n seeds, an entry a column."""

    n: int
    base: np.ndarray
    """Mean of the reference."""
    mean: np.ndarray
    spread: np.ndarray
    """Sample standard deviation of the differences."""
    low: np.ndarray
    high: np.ndarray
    """The 90 % interval: equivalence at the 5 % level is that it lies within the margin."""
    p_equal: np.ndarray
    """Of two one-sided tests that the difference is not within the margin; NaN where nothing can be tested."""
    p_differ: np.ndarray
    """Of the two-sided paired t-test that the difference is 0."""


def compare(arm: np.ndarray, reference: np.ndarray, margin: float) -> Comparison:
    """The tests of every column of two (n, K) arrays, paired by row.

    Args:
        arm: scores, a row a seed.
        reference: those of the reference with the same seeds.
        margin: the largest difference that does not matter, as a share of the reference's mean.
    """
    from scipy.stats import t
    from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

    arm, reference = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
    if arm.shape != reference.shape or arm.ndim != 2 or not len(arm):
        raise ValueError(f"arm and reference must be (seeds, comparisons), got {arm.shape} and {reference.shape}")
    differences = arm - reference
    n, base, mean = len(arm), reference.mean(0), differences.mean(0)
    none = np.full(len(mean), math.nan)
    if n < 2:
        return Comparison(n, base, mean, none, none, none, none, none)
    spread = differences.std(0, ddof=1)
    half = float(t.ppf(1 - LEVEL, n - 1)) * spread / math.sqrt(n)
    limit = margin * np.abs(base)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # scipy's of nearly equal numbers: those have no test, below
        p_equal = np.asarray(ttost_paired(arm, reference, -limit, limit)[0], np.float64)
        p_differ = np.asarray(DescrStatsW(differences).ttest_mean(0.0)[1], np.float64)
    testable = (n >= MIN_SEEDS) & ~constant(differences, base)
    return Comparison(
        n, base, mean, spread, mean - half, mean + half,
        np.where(testable, p_equal, math.nan), np.where(testable, p_differ, math.nan),
    )  # fmt: skip


def constant(differences: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Columns whose differences are equal up to the rounding of their scores: they have no spread to test with."""
    return np.ptp(differences, 0) <= 8 * np.finfo(np.float64).eps * np.maximum(np.abs(base), np.abs(differences).max(0))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values, the last axis a family of tests; tests that were not made (NaN) are not in it.

    Equal to statsmodels' `multipletests`, which collects Python's garbage in each call (0.2 s beside a loaded torch).
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, -1, kind="stable")  # NaN last
    grown = np.maximum.accumulate(np.take_along_axis(p * holm_steps(p), order, -1), -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(grown, 1), -1)
    return np.where(np.isnan(p), math.nan, adjusted)


def holm_steps(p: np.ndarray) -> np.ndarray:
    """What Holm's procedure multiplies each p-value by: the number of tests whose p-values are no smaller."""
    p = np.asarray(p, np.float64)
    rank = np.argsort(np.argsort(p, -1, kind="stable"), -1, kind="stable")
    return np.maximum((~np.isnan(p)).sum(-1, keepdims=True) - rank, 1)


def tost_power(
    difference: float, error: float | np.ndarray, df: int | np.ndarray, margin: float, level: float = LEVEL
) -> np.ndarray:
    """The probability that two one-sided t-tests find a true difference within `-margin .. margin`.

    Args:
        difference: the true one.
        error: the standard error of its estimate.
        df: degrees of freedom of the estimate of that error.
    """
    from scipy.special import ndtr, stdtrit

    found = []
    for one, freedom in np.broadcast(np.atleast_1d(error), np.atleast_1d(df)):
        # Given the estimate s of the error, equivalence is an interval of normal estimates; the mean over s is a sum.
        wide = _relative_errors(int(freedom)) * stdtrit(freedom, 1 - level)
        reach = ndtr((margin - difference) / one - wide) - ndtr((-margin - difference) / one + wide)
        found.append(float(np.maximum(reach, 0).mean()))
    return np.array(found)


def t_power(effect: float, n: int, level: float = LEVEL) -> float:
    """The probability that the two-sided t-test of n differences finds a true one of `effect` standard deviations."""
    from scipy.special import nctdtr, stdtrit

    critical, shift = stdtrit(n - 1, 1 - level / 2), abs(effect) * math.sqrt(n)
    found = 1 - nctdtr(n - 1, shift, critical) + nctdtr(n - 1, shift, -critical)
    return 1.0 if math.isnan(found) else float(found)  # NaN: an effect beyond the distribution's tables


@lru_cache(maxsize=4096)
def _relative_errors(df: int, nodes: int = 400) -> np.ndarray:
    """Estimates of a standard error over the true one, each as likely as any other."""
    from scipy.stats import chi2

    return np.sqrt(chi2.ppf((np.arange(nodes) + 0.5) / nodes, df) / df)


def seeds_needed(
    mean: float, spread: float, n: int, limit: float, steps: tuple[float, float] = (1.0, 1.0)
) -> int | None:
    """How many seeds beyond n would decide with a power of 80 %, if difference and spread stay what they are.

    Either way counts: that the two are equivalent within `limit`, or that they differ. None: not with 1,000.

    Args:
        steps: what Holm's procedure multiplies the p-values of the two tests by.
    """
    if not spread > 0:
        return None

    def differ(total: int) -> float:
        return t_power(mean / spread, total, LEVEL / steps[1])

    def equal(total: int) -> float:
        return float(tost_power(mean, spread / math.sqrt(total), total - 1, limit, LEVEL / steps[0])[0])

    counts = [total for total in _totals() if total > n]
    found = []
    for power, possible in ((equal, abs(mean) < limit), (differ, mean != 0)):
        at = bisect_left(counts, POWER, key=power) if possible else len(counts)
        found += counts[at : at + 1]
    return min(found) - n if found else None


@lru_cache(maxsize=1)
def _totals() -> tuple[int, ...]:
    """Numbers of seeds that are tried: all small ones, then in steps of about 5 %."""
    return tuple(sorted({*range(MIN_SEEDS, 41), *(int(x) for x in np.geomspace(40, MOST_SEEDS, 66).round())}))
