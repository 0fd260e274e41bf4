"""The bootstrap over test examples: its coverage where the truth is known, and what runs keep for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from matmix.experiments.blocks import block_interval, block_length, expanded_levels, read_examples, write_examples
from matmix.experiments.run import RunConfig, execute


def test_single_examples_agree_with_scipy():
    values = np.random.default_rng(0).normal(0.1, 1, 400)
    found = block_interval(values, 1)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.mean == pytest.approx(values.mean()) and found.blocks == 400
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * width)


def test_weighted_examples_agree_with_scipy():
    generator = np.random.default_rng(0)
    values, weights = generator.normal(0.1, 1, 400), generator.integers(0, 9, 400)
    found = block_interval(values, 1, weights=weights)

    def mean(values, weights, axis):
        return (values * weights).sum(axis) / weights.sum(axis)

    theirs = scipy.stats.bootstrap(
        (values, weights), mean, paired=True, method="percentile", n_resamples=4000, random_state=1
    ).confidence_interval
    assert found.mean == pytest.approx(np.average(values, weights=weights))
    assert [found.low, found.high] == pytest.approx(list(theirs), abs=0.1 * (theirs.high - theirs.low))
    alike = block_interval(values, 5, weights=np.full(400, 7.0))
    assert [alike.low, alike.high] == pytest.approx([*vars(block_interval(values, 5)).values()][1:3])
    assert block_interval(values, 1, weights=np.zeros(400)) is None


def test_too_few_blocks_have_no_interval():
    assert block_interval(np.arange(100.0), 26) is None
    found = block_interval(np.arange(100.0), 25)
    assert found.low < 49.5 < found.high and found.mean == 49.5
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        block_interval(np.arange(4.0), 0)
    assert expanded_levels(1) == (0.0, 1.0)
    assert expanded_levels(1e6) == pytest.approx((0.025, 0.975), abs=1e-6)


@pytest.mark.slow
def test_the_interval_covers_where_neighbours_go_together():
    """Errors of 96 forecast steps each, of which neighbouring windows share 95, as many as ETTh1's test split has."""
    generator = np.random.default_rng(0)
    count, length, horizon = 2000, 2785, 96
    noise = generator.normal(size=(count, length + 500))
    sums = scipy.signal.lfilter([1], [1, -0.5], noise, axis=1)[:, 300:].cumsum(1)
    windows = (sums[:, horizon:] - sums[:, :-horizon])[:, :length]
    block = block_length(length, 96 + horizon)
    found = [block_interval(row, block, seed=index) for index, row in enumerate(windows)]
    assert block == 384 and 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97
    naive = [block_interval(row, 1, seed=index) for index, row in enumerate(windows[:200])]
    assert np.mean([one.low <= 0 <= one.high for one in naive]) < 0.6  # single windows would be far too sure


def test_blocks_are_as_long_as_what_neighbours_share_or_longer():
    assert [block_length(2785, span) for span in (1, 192, 432, 2000)] == [1, 384, 432, 2000]


def test_a_run_keeps_the_scores_of_its_test_examples(tmp_path):
    options, recipe = {"patch": 4, "dim": 8, "depth": 1}, {"steps": 4, "eval_every": 4, "log_every": 4}
    result = execute(RunConfig("digits", "identity", 0, options, recipe), tmp_path)
    scores, weights, span = read_examples(tmp_path)
    assert (weights == 1).all()
    assert scores.mean() == pytest.approx(result.test["accuracy"]) and span == 1
    assert set(scores) <= {0.0, 1.0} and len(scores) == result.facts["test"]
    assert read_examples(tmp_path / "nowhere") is None
    (tmp_path / "other").mkdir()
    write_examples(tmp_path / "other", np.array([0.5, math.pi]), 7)
    assert read_examples(tmp_path / "other").span == 7
    write_examples(tmp_path / "other", np.array([0.5, 1.0]), 1, np.array([3.0, 0.0]))
    assert list(read_examples(tmp_path / "other").weights) == [3, 0]
