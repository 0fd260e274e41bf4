"""The section of a report on all data sets together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from matmix.experiments.over_tasks import errors, over_data, skills
from matmix.experiments.report import page
from matmix.experiments.statistics import MIN_BLOCKS
from matmix.experiments.verdicts import Verdict

NUMBERS = frozenset({"data sets", "mean change, %", "p"})


def over_data_blocks(found: Sequence[Verdict], runs: pd.DataFrame, reference: str) -> list[page.Block]:
    """What is said of all data sets, where there is more than one."""
    tests = over_data(found)
    if max((one.blocks for one in tests), default=0) < 2:
        return []
    table = errors(runs)
    skill = {one.arm: one for one in skills(table, reference)}
    rows = []
    for one in tests:
        row = {
            "arm": one.arm,
            "data sets": str(one.blocks),
            "mean change, %": f"{100 * one.change:+.2f}",
            "p": "" if math.isnan(one.p) else f"{one.p:.2g}",
        }
        if one.arm in skill:
            row |= {
                "skill, %": _interval(skill[one.arm].skill),
                "win rate, %": _interval(skill[one.arm].wins),
            }
        rows.append(row)
    if all(math.isnan(one.p) for one in tests):
        said = [f"Fewer than {MIN_BLOCKS} data sets: no test over data sets."]
    else:
        said = ["Wilcoxon's signed-rank test of the changes, a data set a block, with Holm's correction over the arms."]
    said.append("Models and horizons of a data set are averaged first.")
    if skill:
        said.append(
            f"Skill: 1 - geometric mean of the error over that of {reference}, over the {len(table)} tasks that all "
            "arms have. Win rate: the share of tasks and other arms that an arm beats, ties counted half. Their 95 % "
            "intervals are of a bootstrap over data sets. fev.csv beside this page has the errors as fev reads them."
        )
    return [page.Heading(3, "Over data sets"), page.Text(" ".join(said)), page.Table(pd.DataFrame(rows), NUMBERS)]


def _interval(value: tuple[float, float, float]) -> str:
    mean, low, high = (100 * one for one in value)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
