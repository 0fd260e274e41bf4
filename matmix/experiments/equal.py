"""Arms at equal budgets: `matmix study replace --equal parameters --by hidden`.

An arm without a mixer has fewer parameters than one with a costly mixer, and what it loses may be their number. So one
number of the model, the width of its perceptrons say, is set for each arm such that all come to the reference's budget.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Literal

from matmix.experiments.costs import costs
from matmix.experiments.models import read
from matmix.experiments.plugins import import_all
from matmix.experiments.registry import settings_of
from matmix.experiments.run import RunConfig
from matmix.experiments.study import Study, StudyArm, StudyTask
from matmix.spec import Spec

Budget = Literal["parameters", "macs"]
CLOSE = 0.01
"""How far an arm may be from the budget, as a share of it."""
MOST = 2**20
"""Steps up to which a number is tried."""


def equal_arms(study: Study, budget: Budget, by: str, say: Callable[[str], None] = lambda line: None) -> Study:
    """The study with one number of its model set for each arm, so that all have the budget of the reference.

    The mixers of the study are set; controls that its tasks have of their own stay as they are.

    Args:
        budget: "parameters", or "macs": multiply-accumulates for one example.
        by: the number: a setting of the task, or an option of its model, with the step that it goes in where that is
            not 1: "hidden", "dim=8", "mlp_ratio=0.0625".
        say: gets a line for each arm, as it is found.

    Raises:
        ValueError: for a step that is no positive number, a study without its reference, a number that a model does
            not have, and an arm that does not come within 1 % of the budget.
    """
    import_all(study.imports)
    name, step = _step(by)
    tasks = tuple(dataclasses.replace(task, arms=_arms(study, task, budget, name, step, say)) for task in study.tasks)
    words = "multiply-accumulates" if budget == "macs" else budget
    note = f"{study.note} All arms have the {words} of {study.reference}, by {name} of the model.".strip()
    return dataclasses.replace(study, tasks=tasks, note=note)


def _step(by: str) -> tuple[str, float]:
    name, equals, text = by.partition("=")
    try:
        step = ast.literal_eval(text) if equals else 1
    except (ValueError, SyntaxError):
        step = None
    if not name.isidentifier() or isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < 1e9:
        raise ValueError(
            f"by must be the name of a number of the model, with the step that it goes in where that is not 1, as in "
            f"hidden, dim=8 or mlp_ratio=0.0625, got {by!r}"
        )
    return name, step


def _arms(
    study: Study, task: StudyTask, budget: Budget, name: str, step: float, say: Callable[[str], None]
) -> tuple[StudyArm, ...]:
    label = task.label or task.task
    rows = {arm.name: arm for arm in task.rows(study.mixers)}
    if study.reference not in rows:
        raise ValueError(
            f"equal: the budget is that of the reference, and {study.reference!r} is no arm of {label}: "
            f"{', '.join(rows)}"
        )
    target = _cost(study, task, rows[study.reference], budget)
    say(f"{label}: {study.reference} has {target:,} {budget}")
    arms = {arm.name: arm for arm in task.arms}
    for mixer in study.mixers:
        if mixer != study.reference:
            arms[mixer], value, found = _sized(study, task, rows[mixer], budget, name, step, target)
            say(f"{label}: {mixer} has {found:,} with {name}={value}")
    return tuple(arms.values())


def _sized(
    study: Study, task: StudyTask, arm: StudyArm, budget: Budget, name: str, step: float, target: int
) -> tuple[StudyArm, float, int]:
    """The arm with the number at which its cost is nearest to the budget, that number, and the cost."""
    where = f"equal: {arm.name} on {task.label or task.task}"

    def changed(steps: int) -> StudyArm:
        return _with(task, arm, name, steps * step)

    @cache
    def cost(steps: int) -> int:
        try:
            return _cost(study, task, changed(steps), budget)
        except ValueError as error:
            raise ValueError(f"{where} with {name}={steps * step}: {error}") from None

    low, high = 1, 2
    while cost(high) < target:
        low, high = high, 2 * high
        if high > MOST or cost(high) == cost(low):
            raise ValueError(f"{where} has {cost(low):,} {budget} with {name}={low * step}, and no more with a larger "
                             f"one: its budget is {target:,}")  # fmt: skip
    turn = False
    while high - low > 1:  # cost grows as a line or a parabola does: its secant, and the middle, in turn
        share = 0.5 if turn else (target - cost(low)) / (cost(high) - cost(low))
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        low, high = (middle, high) if cost(middle) < target else (low, middle)
        turn = not turn
    best = min((low, high), key=lambda steps: abs(cost(steps) - target))
    if abs(cost(best) - target) > CLOSE * target:
        raise ValueError(f"{where} has {cost(best):,} {budget} with {name}={best * step}, its nearest to {target:,}: "
                         f"by must be a number that brings it within {CLOSE:.0%}")  # fmt: skip
    return changed(best), best * step, cost(best)


def _with(task: StudyTask, arm: StudyArm, name: str, value: float) -> StudyArm:
    """The arm with a number of its task, or of the model that the task names, at this value."""
    options = {**task.options, **arm.options}
    if name in settings_of(task.task):
        return dataclasses.replace(arm, options={**arm.options, name: value})
    if "architecture" not in options:
        raise ValueError(f"by must be a setting of {task.task}, got {name!r}")
    package, model, own = read(options["architecture"])
    spec = str(Spec(model, (), tuple({**own, name: value}.items())))
    architecture = f"{package}:{spec}" if package else spec
    return dataclasses.replace(arm, options={**arm.options, "architecture": architecture})


def _cost(study: Study, task: StudyTask, arm: StudyArm, budget: Budget) -> int:
    options = {**task.options, **arm.options}
    config = RunConfig(
        task.task, arm.spec, study.seeds[0], options, {**task.recipe, **arm.recipe}, surgery=task.surgery
    )
    made = config.make_task()
    found = costs(made, config.make_model(made, begun=True))[budget]
    assert found is not None
    return found
