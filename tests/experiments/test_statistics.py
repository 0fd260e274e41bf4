"""Statistics against scipy's own routines and published critical values."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from matmix.experiments.statistics import MIN_BLOCKS, paired_difference, rank, summarize, t_factor


def test_summary():
    found = summarize([1.0, 2.0, 4.0])
    assert (found.n, found.mean) == (3, 7 / 3)
    assert found.spread == pytest.approx(scipy.stats.tstd([1.0, 2.0, 4.0]))
    assert summarize([0.5]).spread is None
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            summarize(bad)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_interval_is_that_of_the_paired_t_test(confidence):
    generator = np.random.default_rng(0)
    arm = {seed: float(generator.normal(0.9, 0.1)) for seed in range(6)}
    reference = {seed: float(generator.normal(0.8, 0.1)) for seed in range(6)}
    found = paired_difference(arm, reference, confidence)
    test = scipy.stats.ttest_rel(list(arm.values()), list(reference.values()))
    interval = test.confidence_interval(confidence)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.clear == (test.pvalue < 1 - confidence)


def test_only_shared_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 3.0, 7: 100.0}, {1: 1.0, 0: 0.0, 5: -100.0})
    assert (found.n, found.mean) == (2, 1.5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_no_interval():
    found = paired_difference({0: 1.0}, {0: 0.5})
    assert (found.mean, found.low, found.high, found.clear) == (0.5, None, None, None)


def test_equal_differences_have_an_interval_of_no_width():
    found = paired_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5})
    assert (found.low, found.high, found.clear) == (0.5, 0.5, True)
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).clear is False


def test_t_factor_of_three_seeds():
    assert t_factor(3) == pytest.approx(4.3027, abs=1e-4)


def scores(blocks: int, arms: int, spread: float = 1.0) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(blocks, arms)) * spread + np.arange(arms)
    return pd.DataFrame(values, columns=[f"arm{i}" for i in range(arms)])


def test_ranks_and_their_direction():
    table = pd.DataFrame({"a": [0.9, 0.8], "b": [0.5, 0.8], "c": [0.1, 0.2]})
    found = rank(table)
    assert found.average == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert rank(table, higher_is_better=False).average == {"a": 2.75, "b": 2.25, "c": 1.0}


def test_too_few_blocks_are_not_tested():
    found = rank(scores(MIN_BLOCKS - 1, 4))
    assert found.p is None and found.pairs == {} and "5 blocks" in found.note
    assert found.differs("arm0", "arm3") is None
    assert 2 / 2 ** (MIN_BLOCKS - 1) > 0.05 > 2 / 2**MIN_BLOCKS  # the reason for the limit


def test_friedman_and_nemenyi():
    table = scores(8, 4)
    found = rank(table, nemenyi=True)
    assert found.p == pytest.approx(scipy.stats.friedmanchisquare(*table.to_numpy().T).pvalue)
    # Nemenyi: ranks apart by q(0.05, k=4) sqrt(k (k + 1) / 6 n) = 2.569 sqrt(20 / 48) (Demsar 2006, table 5)
    critical = 2.569 * math.sqrt(4 * 5 / (6 * 8))
    assert len(found.pairs) == 6
    for first, second in found.pairs:
        apart = abs(found.average[first] - found.average[second]) > critical
        assert found.differs(second, first) == apart
    assert found.differs("arm0", "arm3") and not found.differs("arm0", "arm1")


def test_pairs_are_tested_by_signed_ranks_whatever_the_other_arms():
    table = scores(8, 3)
    raw = {pair: scipy.stats.wilcoxon(table[pair[0]], table[pair[1]]).pvalue for pair in combinations(table.columns, 2)}
    adjusted = multipletests(list(raw.values()), method="holm")[1]
    found = rank(table)
    assert "Wilcoxon" in found.note and found.pairs == pytest.approx(dict(zip(raw, adjusted, strict=True)))
    # Nemenyi's p of a pair moves with arms that have nothing to do with it; a signed-rank test has no way to.
    more = table.assign(arm3=table["arm0"] + 0.01, arm4=table["arm0"] - 0.01)
    pair = ("arm1", "arm2")
    assert rank(table, nemenyi=True).pairs[pair] != pytest.approx(rank(more, nemenyi=True).pairs[pair])
    assert scipy.stats.wilcoxon(more["arm1"], more["arm2"]).pvalue == raw[pair]


def test_two_arms_use_the_signed_rank_test():
    table = scores(8, 2)
    found = rank(table)
    assert found.p == pytest.approx(scipy.stats.wilcoxon(table["arm0"], table["arm1"]).pvalue)
    assert "Wilcoxon" in found.note


def test_equal_scores_and_bad_tables():
    assert rank(pd.DataFrame({"a": [1.0] * 8, "b": [1.0] * 8, "c": [1.0] * 8})).p == 1.0
    with pytest.raises(ValueError, match="two arms"):
        rank(pd.DataFrame({"a": [1.0]}))
    with pytest.raises(ValueError, match="incomplete"):
        rank(pd.DataFrame({"a": [1.0, math.nan], "b": [1.0, 2.0]}))
