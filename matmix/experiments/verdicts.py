"""Verdicts of a study that said its margin before it ran: is an arm equivalent to the reference, better, or worse?

An arm is "equivalent within 1 %" where two one-sided tests (TOST) put its difference to the reference, paired by seed,
within 1 % of the reference's score, on either side. It is "better" or "worse" where it is not equivalent and the paired
t-test tells it from the reference. Both tests are corrected by Holm over all models and data sets of an arm. All else
is undecided, and is never called equal.

Seeds speak of training again on the same data. What other test data would say, `blocks.py` asks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from matmix.experiments.equivalence import (
    LEVEL,
    MIN_SEEDS,
    MOST_SEEDS,
    compare,
    constant,
    holm,
    holm_steps,
    seeds_needed,
)

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["equivalent", "better", "worse", "undecided"]
KINDS: tuple[Kind, ...] = ("equivalent", "better", "worse", "undecided")
COLUMNS = ("setting", "model", "data", "arm", "seed", "score", "status", "metric", "higher_is_better")
"""Of a table of runs. `score` is NaN where a run has none; `status` says why."""


@dataclass(frozen=True)
class Verdict:
    """One arm on one model and data set, against the reference."""

    setting: str
    model: str
    data: str
    arm: str
    reference: str
    metric: str
    higher_is_better: bool
    margin: float
    n: int
    """Seeds with a score of both."""
    base: float = math.nan
    """Mean score of the reference with these seeds."""
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    """Of the difference `arm - reference`: mean and 90 % interval."""
    p_equal: float = math.nan
    p_differ: float = math.nan
    """Adjusted; NaN where there is no test."""
    kind: Kind = "undecided"
    more: int | None = None
    """About how many more seeds would decide."""
    why: str = ""
    """What stands behind "equivalent" or "undecided" where it is no test."""

    @property
    def place(self) -> str:
        """Model and data set in words."""
        return ", ".join(filter(None, (self.model, self.setting if self.data in ("", self.setting) else self.data)))

    def share(self, difference: float) -> float:
        """A difference as a share of the reference's score."""
        return difference / abs(self.base) if self.base else math.nan

    @property
    def word(self) -> str:
        """The verdict alone."""
        if self.kind == "equivalent":
            return f"equivalent within {percent(self.margin)}"
        if self.kind != "undecided":
            return self.kind
        if self.why:
            return f"undecided: {self.why}"
        if self.more is None:
            return f"undecided: {MOST_SEEDS:,} seeds would not decide"
        return f"undecided: about {self.more} more seed{'s' * (self.more > 1)} would decide"

    @property
    def change(self) -> str:
        """The difference with its interval, as shares of the reference's score."""
        if math.isnan(self.mean) or not self.base:
            return ""
        shares = [f"{100 * self.share(value):+.2f}" for value in (self.mean, self.low, self.high)]
        return f"{shares[0]} %" if math.isnan(self.low) else f"{shares[0]} % [{shares[1]}, {shares[2]}]"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def verdicts(runs: pd.DataFrame, reference: str, margin: float) -> list[Verdict]:
    """The verdict on every arm of every setting that has runs of the reference.

    Args:
        runs: a row a run, with `COLUMNS`.
        reference: the arm that the others are compared to.
        margin: the largest difference that does not matter, as a share of the reference's score.

    Raises:
        ValueError: for a margin that is none, a column that is missing, or a run that stands twice.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must be a share of a score, 0 < margin < 1, got {margin}")
    missing = [name for name in COLUMNS if name not in runs.columns]
    if missing:
        raise ValueError(f"a table of runs has the columns {', '.join(COLUMNS)}; these lack: {', '.join(missing)}")
    twice = runs.duplicated(["setting", "arm", "seed"])
    if twice.any():
        raise ValueError(
            f"a run stands twice in the table: {runs[twice].iloc[0][['setting', 'arm', 'seed']].to_dict()}"
        )
    cells, scores = _cells(runs, reference, margin)
    found: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in _tested(cells, scores):
        found[verdict.arm].append(verdict)
    return [verdict for family in found.values() for verdict in _decided(family, scores)]


Scores = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""By setting and arm: its scores and those of the reference, with the seeds that both have."""


def _cells(runs: pd.DataFrame, reference: str, margin: float) -> tuple[list[Verdict], Scores]:
    """Every arm of every setting without a verdict yet."""
    tables: dict[str, dict[str, list[Any]]] = {}
    for row in runs[list(COLUMNS)].itertuples(index=False):  # groups of pandas take a millisecond each
        tables.setdefault(row.setting, {}).setdefault(row.arm, []).append(row)
    cells, scores = [], {}
    for setting, by_arm in tables.items():
        base = {row.seed: row.score for row in by_arm.get(reference, ()) if math.isfinite(row.score)}
        for arm, rows in by_arm.items():
            if arm == reference or reference not in by_arm:
                continue
            shared = [row for row in rows if math.isfinite(row.score) and row.seed in base]
            scores[setting, arm] = np.array([row.score for row in shared]), np.array([base[row.seed] for row in shared])
            lost = Counter(row.status for row in rows if row.status in ("diverged", "failed"))
            why = ", ".join(f"{count} of {len(rows)} seeds {status}" for status, count in lost.items())
            one = rows[0]
            cells.append(
                Verdict(
                    setting, one.model, one.data, arm, reference, one.metric, bool(one.higher_is_better), margin,
                    len(shared), why=why,
                )
            )  # fmt: skip
    return cells, scores


def _tested(cells: Sequence[Verdict], scores: Scores) -> list[Verdict]:
    """With differences, intervals and p-values, not yet adjusted: all cells with as many seeds at once."""
    found = list(cells)
    for n in {cell.n for cell in cells} - {0}:
        at = [index for index, cell in enumerate(cells) if cell.n == n]
        pairs = [scores[cells[index].setting, cells[index].arm] for index in at]
        tests = compare(
            np.stack([arm for arm, _ in pairs], 1), np.stack([base for _, base in pairs], 1), cells[0].margin
        )
        for column, index in enumerate(at):
            values: dict[str, Any] = {
                name: float(getattr(tests, name)[column])
                for name in ("base", "mean", "low", "high", "p_equal", "p_differ")
            }
            if cells[index].why:  # it is judged by the runs that it lost
                values |= {"p_equal": math.nan, "p_differ": math.nan}
            found[index] = replace(cells[index], **values)
    return found


def _decided(family: Sequence[Verdict], scores: Scores) -> list[Verdict]:
    """The verdicts on one arm, corrected over its models and data sets."""
    raw_equal, raw_differ = (np.array([getattr(cell, name) for cell in family]) for name in ("p_equal", "p_differ"))
    equal, differ = holm(raw_equal), holm(raw_differ)
    steps = np.stack([holm_steps(raw_equal), holm_steps(raw_differ)], 1)
    found = []
    for index, cell in enumerate(family):
        cell = replace(cell, p_equal=float(equal[index]), p_differ=float(differ[index]))
        arm, base = scores[cell.setting, cell.arm]
        if cell.p_equal < LEVEL:
            found.append(replace(cell, kind="equivalent"))
        elif cell.p_differ < LEVEL:
            found.append(replace(cell, kind="better" if (cell.mean > 0) == cell.higher_is_better else "worse"))
        elif cell.why:
            found.append(cell)
        elif cell.n < MIN_SEEDS:
            seeds = "no seed has" if not cell.n else "1 seed has" if cell.n == 1 else f"{cell.n} seeds have"
            found.append(replace(cell, why=f"{seeds} a score of both, a verdict needs {MIN_SEEDS} at least"))
        elif constant((arm - base)[:, None], np.array([cell.base]))[0]:
            same = f"the difference is the same with all {cell.n} seeds, which leaves nothing to test with"
            alike = not np.any(arm - base)
            found.append(
                replace(cell, kind="equivalent" if alike else "undecided", why="the same scores" if alike else same)
            )
        else:
            spread = float((arm - base).std(ddof=1))
            limit, (first, second) = cell.margin * abs(cell.base), steps[index]
            found.append(replace(cell, more=seeds_needed(cell.mean, spread, cell.n, limit, (first, second))))
    return found
