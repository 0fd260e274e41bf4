"""The published regimes of the Long Range Arena by name: `matmix train listops --recipe s4`.

A regime is a function of the task's name that says where it is from, its sizes, its steps and what they cost, and in
what our model is another; it returns a `Regime`: settings of the task, a `Recipe`, the source's own mixer. Numbers of
one regime say nothing about another, so published ones are kept by regime (`published.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matmix.spec import hint
from sequence.regimes.base import Count, Regime
from sequence.regimes.lra2020 import lra2020
from sequence.regimes.mega import mega
from sequence.regimes.nystrom import nystrom
from sequence.regimes.published import ELSEWHERE, PUBLISHED, TASKS, Published, published
from sequence.regimes.s4 import s4, s4_mlp
from sequence.regimes.s5 import s5
from sequence.regimes.spt import KINDS, spt, spt_scratch

REGIMES: dict[str, Callable[[str], Regime]] = {
    "lra2020": lra2020,
    "nystrom": nystrom,
    "s4": s4,
    "s4-mlp": s4_mlp,
    "s5": s5,
    "mega": mega,
    **{name: partial(spt, kind=kind) for name, kind in KINDS.items()},
    "spt-scratch": spt_scratch,
}
PRETRAINING: dict[str, Callable[[str], Regime]] = {
    name: partial(spt, kind=kind, phase="pretraining") for name, kind in KINDS.items()
}
"""Those that begin with the inputs alone, and how."""


def regime(name: str, task: str, among: dict[str, Callable[[str], Regime]] = REGIMES) -> Regime:
    """A regime by its name, for a task of `TASKS`.

    Raises:
        ValueError: for an unknown name, or a task that the source did not train on; the message lists those there are.
    """
    if name not in among:
        raise ValueError(f"unknown recipe {name!r}{hint(name, ['default', *among])}")
    return among[name](task)


__all__ = [
    "ELSEWHERE", "PRETRAINING", "PUBLISHED", "REGIMES", "TASKS", "Count", "Published", "Regime", "published", "regime",
]  # fmt: skip
