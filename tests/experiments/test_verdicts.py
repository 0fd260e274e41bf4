"""Verdicts against statsmodels, hand-worked cases, and simulated studies whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from matmix.experiments.equivalence import compare, holm, holm_steps, seeds_needed, t_power, tost_power
from matmix.experiments.verdicts import COLUMNS, verdicts

STUDIES = 2000


def runs_of(scores: dict[tuple[str, str], list[float]], *, status: str = "finished", rises: bool = False):
    """A table of runs from scores by setting and arm; NaN is a run with that status."""
    rows = [
        (
            setting,
            "itransformer",
            setting,
            arm,
            seed,
            score,
            "finished" if math.isfinite(score) else status,
            "mse",
            rises,
        )
        for (setting, arm), found in scores.items()
        for seed, score in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def only(found):
    (verdict,) = found
    return verdict


def test_the_worked_case():
    # Measured with the published code on ETTh1 at 96 -> 96: differences 0.0023, 0.0007 and 0.0017.
    published, dense = [0.3945, 0.3941, 0.3932], [0.3968, 0.3948, 0.3949]
    found = only(verdicts(runs_of({("ETTh1", "default"): published, ("ETTh1", "dense"): dense}), "default", 0.01))
    assert found.word == "equivalent within 1 %"
    assert (found.low, found.high) == (pytest.approx(0.0002, abs=5e-5), pytest.approx(0.0029, abs=5e-5))
    assert max(abs(found.share(found.low)), abs(found.share(found.high))) <= 0.0075
    limit = 0.01 * np.mean(published)
    assert found.p_equal == pytest.approx(ttost_paired(np.array(dense), np.array(published), -limit, limit)[0])
    assert found.change == "+0.40 % [+0.05, +0.74]"
    tighter = only(verdicts(runs_of({("ETTh1", "default"): published, ("ETTh1", "dense"): dense}), "default", 0.005))
    assert tighter.word == "undecided: about 2 more seeds would decide"


def test_better_and_worse_follow_the_direction():
    base, moved = [0.50, 0.51, 0.49, 0.50], [0.45, 0.462, 0.439, 0.451]
    for rises, word in ((False, "better"), (True, "worse")):
        found = only(verdicts(runs_of({("d", "r"): base, ("d", "a"): moved}, rises=rises), "r", 0.01))
        assert found.word == word and found.share(found.mean) == pytest.approx(-0.099)
        assert found.p_differ == pytest.approx(scipy.stats.ttest_rel(moved, base).pvalue)


@pytest.mark.parametrize(
    ("arm", "word"),
    [
        ([0.5], "undecided: 1 seed has a score of both, a verdict needs 3 at least"),
        ([0.5, 0.501], "undecided: 2 seeds have a score of both, a verdict needs 3 at least"),
        ([math.nan] * 3, "undecided: 3 of 3 seeds failed"),
        ([0.5, 0.501, math.nan], "undecided: 1 of 3 seeds failed"),
        ([0.5, 0.51, 0.52], "equivalent within 1 %"),  # the very scores of the reference
        ([0.5 * 1.001, 0.51 + 0.0005, 0.52 + 0.0005], "undecided: the difference is the same with all 3 seeds"),
        ([0.7, 0.3, 0.5], "undecided: 1,000 seeds would not decide"),
    ],
)
def test_what_cannot_be_tested_is_said_in_words(arm, word):
    found = only(verdicts(runs_of({("d", "r"): [0.5, 0.51, 0.52], ("d", "a"): arm}, status="failed"), "r", 0.01))
    assert found.word.startswith(word) and (math.isnan(found.p_equal) or found.more is None)


def test_an_arm_is_corrected_over_its_models_and_data_sets():
    generator = np.random.default_rng(3)
    scores = {}
    for index in range(6):
        base = 0.4 + 0.001 * generator.normal(size=4)
        scores[f"d{index}", "r"] = list(base)
        for arm in ("a", "b"):
            scores[f"d{index}", arm] = list(base + 0.0012 * generator.normal(size=4))
    table = runs_of(scores)
    found = verdicts(table, "r", 0.01)
    assert [v.arm for v in found] == ["a"] * 6 + ["b"] * 6
    for arm in ("a", "b"):
        mine = [v for v in found if v.arm == arm]
        raw = [
            ttost_paired(np.array(scores[v.data, arm]), np.array(scores[v.data, "r"]), -0.01 * v.base, 0.01 * v.base)[0]
            for v in mine
        ]
        np.testing.assert_allclose([v.p_equal for v in mine], multipletests(raw, method="holm")[1])
    alone = verdicts(table[table["setting"] == "d0"], "r", 0.01)
    assert all(one.p_equal <= v.p_equal for one in alone for v in found if (v.data, v.arm) == (one.data, one.arm))
    # Holm's own arithmetic: 0.01 x 3, 0.02 x 2, and 0.04 no smaller than its predecessor; a test not made is not in it.
    np.testing.assert_allclose(holm(np.array([0.02, math.nan, 0.01, 0.04])), [0.04, math.nan, 0.03, 0.04])
    np.testing.assert_array_equal(holm_steps(np.array([0.02, math.nan, 0.01, 0.04])), [2, 1, 3, 1])


def test_tables_that_make_no_sense():
    table = runs_of({("d", "r"): [0.5], ("d", "a"): [0.5]})
    with pytest.raises(ValueError, match=r"margin must be .* got 0"):
        verdicts(table, "r", 0)
    with pytest.raises(ValueError, match="lack: status"):
        verdicts(table.drop(columns="status"), "r", 0.01)
    with pytest.raises(ValueError, match="stands twice"):
        verdicts(pd.concat([table, table]), "r", 0.01)
    assert verdicts(table, "another", 0.01) == []


def test_powers():
    # PowerTOST's documented case: CV 0.25, true ratio 0.95, limits 0.80 to 1.25, 28 subjects crossed over: 0.80744.
    error = math.sqrt(math.log(1 + 0.25**2) * 2 / 28)
    assert tost_power(math.log(0.95), error, 26, math.log(1.25)) == pytest.approx(0.80744, abs=2e-4)
    for effect, n, level in ((0.5, 5, 0.05), (1.3, 12, 0.01), (0.0, 30, 0.05)):
        assert t_power(effect, n, level) == pytest.approx(TTestPower().power(effect, n, level), abs=1e-9)
    assert t_power(1e6, 3) == 1.0
    # The least number that comes to 80 %, by either test.
    more = seeds_needed(0.0005, 0.002, 5, 0.002)
    power = [tost_power(0.0005, 0.002 / math.sqrt(n), n - 1, 0.002)[0] for n in (4 + more, 5 + more)]
    assert power[0] < 0.8 <= power[1]
    more = seeds_needed(0.01, 0.01, 3, 0.002)  # far outside of the margin: a difference is found
    assert t_power(1.0, 2 + more) < 0.8 <= t_power(1.0, 3 + more)
    assert seeds_needed(0.002, 0.5, 3, 0.002) is None


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("paired", [0.0, 0.9])  # the share of a score's variance that arm and reference have in common
def test_simulated_studies_keep_their_error_rates(seeds, paired):
    generator = np.random.default_rng(seeds)
    margin, level, spread = 0.01, 0.4, 0.001
    shared = generator.normal(size=(seeds, STUDIES)) * math.sqrt(paired)

    def draw(mean: float) -> np.ndarray:
        return mean + spread * (shared + math.sqrt(1 - paired) * generator.normal(size=(seeds, STUDIES)))

    slack = 2.6 * math.sqrt(0.05 * 0.95 / STUDIES)  # what 99 of 100 simulations stay within
    for edge in (1 - margin, 1 + margin):
        found = compare(draw(level * edge), draw(level), margin)
        assert (found.p_equal < 0.05).mean() <= 0.05 + slack
    found = compare(draw(level), draw(level), margin)
    assert (found.p_differ < 0.05).mean() == pytest.approx(0.05, abs=slack)
    truth = 0.0015
    found = compare(draw(level + truth), draw(level), margin)
    assert ((found.low <= truth) & (truth <= found.high)).mean() == pytest.approx(0.90, abs=0.02)
    half = (found.high - found.low) / 2 * scipy.stats.t.ppf(0.975, seeds - 1) / scipy.stats.t.ppf(0.95, seeds - 1)
    assert 0.93 <= (abs(found.mean - truth) <= half).mean() <= 0.97
    assert (found.p_equal < 0.05).mean() > (0.99 if paired else 0.2)  # and they do find what is there


def test_simulated_studies_of_eight_data_sets_keep_the_rate_of_the_family():
    """At the margin's edge on all of them, "equivalent" is said anywhere in at most 5 % of the studies."""
    generator = np.random.default_rng(0)
    base = 0.4 + 0.001 * generator.normal(size=(5, 8 * STUDIES))
    arm = 0.4 * 1.01 + 0.001 * generator.normal(size=(5, 8 * STUDIES))
    raw = compare(arm, base, 0.01).p_equal.reshape(STUDIES, 8)
    assert (raw < 0.05).any(1).mean() > 0.2
    assert (holm(raw) < 0.05).any(1).mean() <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / STUDIES)
