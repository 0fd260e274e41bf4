"""MAD (arXiv 2403.17844): `matmix study mad`."""

from __future__ import annotations

from typing import Annotated

import tyro

from matmix.experiments.study import Study, StudyTask
from sequence.tasks.mad_grid import FACTORS, SWEEP, settings

MIXERS = {
    "attention": "attention(head_dim=8, causal=True, rotary=True)",
    "linear_attention": "linear_attention(causal=True)",
    "ssd": "ssd",
    "s6": "s6",
    "delta_rule": "delta_rule",
}
"""Causal ones, as recall is learnt by saying the next token; attention has rotary positions there."""


def mad(
    harder: Annotated[
        bool, tyro.conf.arg(help="All 66 settings, instead of the published size of each of the six tasks.")
    ] = False,
) -> Study:
    """The six tasks of MAD with its sweep of three learning rates and two weight decays: 36 runs a mixer and seed.

    `sequence.tasks.mad_grid.score` makes MAD's score of the runs: the best of the sweep, averaged.
    """
    specs = {name: spec for name, spec in MIXERS.items() if name != spec}
    return Study(
        name="mad-harder" if harder else "mad",
        tasks=tuple(
            StudyTask("mad", setting.options, label=setting.label, specs=specs)
            for setting in settings(FACTORS, harder=harder)
        ),
        mixers=tuple(MIXERS),
        seeds=(0,),
        recipes={name: dict(changes) for name, changes in SWEEP.items()},
        note="MAD: each task at three learning rates by two weight decays; a mixer's score is the best of the six.",
    )
