"""The two published suites of associative recall as studies: accuracy against the size of the state."""

from __future__ import annotations

import dataclasses
from typing import Literal

from matmix.experiments.study import Study, StudyTask
from matmix.experiments.task import changed
from sequence.studies.equal_state import equal_states
from sequence.tasks.mqar import FIGURE2, MQAR, RATES, CompositionalMQAR, ForgettingMQAR

TASKS = {"mqar": MQAR, "mqar-compositional": CompositionalMQAR, "mqar-forgetting": ForgettingMQAR}
MIXERS = (
    "attention(causal=True)", "delta_rule", "gla", "ssd(d_state=16)", "ssd(d_state=64)", "s6", "retention", "s4d"
)  # fmt: skip
SIZED_ALIKE = ("attention(causal=True)", "delta_rule", "gla", "ssd", "s6", "retention", "s4d")


def mqar(
    *,
    suite: Literal["figure2", "mixed"] = "figure2",
    task: Literal["mqar", "mqar-compositional", "mqar-forgetting"] = "mqar",
    lengths: tuple[int, ...] = (),
    dims: tuple[int, ...] = (64, 128, 256, 512),
    rates: tuple[float, ...] = (),
    states: tuple[int, ...] = (),
) -> Study:
    """Associative recall at published sizes: how much can each mixer look up, for how many bytes of state?

    "figure2" is one training for each length, "mixed" trains on five sizes at once and tests on seven. As published,
    the best of four learning rates counts for each mixer and width; `matmix picture state` draws it. A training of
    "figure2" at length 64 is 12,480 steps of 512 rows.

    Args:
        suite: which of the two.
        task: recall, or one of its variants, which have the suite "mixed".
        lengths: of those of "figure2", 64 to 512, where not all are wanted.
        dims: widths of the model.
        rates: learning rates, where they are not the published ones.
        states: bytes of state that every mixer keeps in a layer, such as 16384 65536: each is sized to them, at every
            width (`sequence.studies.equal_state`). Attention, which keeps all tokens, stays as it is, and so do all
            where none are named.
    """
    cls = TASKS[task]
    sizes = [size for size in FIGURE2 if not lengths or size[0] in lengths] if suite == "figure2" else [None]
    known = [length for length, _ in FIGURE2]
    if lengths and (suite != "figure2" or not set(lengths) <= set(known)):
        raise ValueError(f"lengths are among {known} and of suite='figure2', got {lengths} with suite={suite!r}")
    if not dims:
        raise ValueError("dims must name at least one width, got none")
    tasks = []
    for cells in sizes:
        given = cls() if cells is None else dataclasses.replace(cls(), length=cells[0], pairs=cells[1])
        named, recipe = given.named_recipe(suite)
        options, own = changed(named, cls()), changed(recipe, named.recipe())
        words = "" if cells is None else f" L={cells[0]} n={cells[1]}"
        for dim in dims:
            here = {**options, "dim": dim}
            tasks += [StudyTask(task, here, own, f"{task}{words} D={dim}")] if not states else []
            for size in states:
                specs = equal_states(SIZED_ALIKE, size, dim)
                tasks += [StudyTask(task, here, own, f"{task}{words} D={dim} S={size}", specs)]
    return Study(
        name=f"{task}-{suite}",
        tasks=tuple(tasks),
        mixers=SIZED_ALIKE if states else MIXERS,
        seeds=(0,),
        recipes={f"lr={rate:.1e}": {"lr": rate} for rate in rates or RATES[suite]},
        reference=MIXERS[0],
        note="How much can each mixer look up, for how many bytes of state? The best of the rates counts.",
    )
