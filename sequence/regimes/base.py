"""What a regime is: how one source sizes and trains its model on one task of the Long Range Arena."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from matmix.experiments.task import Recipe
from matmix.spec import hint
from sequence.regimes.published import published

T = TypeVar("T")

EXAMPLES = {
    "listops": 96_000, "text": 25_000, "retrieval": 147_086, "image": 45_000, "pathfinder": 160_000, "pathx": 160_000,
}  # fmt: skip
"""Training examples of each task, as all sources have them; those of retrieval are pairs of documents."""
LENGTH = {
    "listops": 2048, "text": 4096, "retrieval": 4000, "image": 1024, "pathfinder": 1024, "pathx": 16_384,
}  # fmt: skip
"""Tokens of the longest input."""
TOKENS = ("listops", "text", "retrieval")
"""The tasks whose inputs are ids of tokens; the others' are grey values."""


class Count(NamedTuple):
    """Parameters of the published model, and what tells their number from that of ours with the same settings."""

    millions: float
    """As counted from the sizes in the source's code."""
    lacks: Mapping[str, int] = {}
    """By reason: what the published model has and ours has not; negative where ours has more."""


@dataclasses.dataclass(frozen=True)
class Regime:
    """The settings and the recipe of one source for one task, and what is to be known about them."""

    name: str
    task: str
    mixer: str
    """Spec of the source's own arm, or the nearest that there is here."""
    attention: str
    """Spec of the attention arm: with rotary positions, unless the regime has positions of its own."""
    settings: Mapping[str, Any]
    """Of the task, by field."""
    recipe: Recipe
    count: Count
    seeds: tuple[int, ...]
    """Those that the source states; () for none."""
    selection: str
    """Which weights the published number is of."""

    @property
    def epochs(self) -> float:
        """How often a training example is seen."""
        return self.recipe.steps * self.recipe.batch_size / EXAMPLES[self.task]

    @property
    def tokens(self) -> int:
        """Tokens of all training steps, padding included."""
        documents = 2 if self.task == "retrieval" else 1
        return self.recipe.steps * self.recipe.batch_size * documents * LENGTH[self.task]

    @property
    def published(self) -> dict[str, float | None]:
        """Published accuracy in % by model, got in this regime; None: at chance."""
        return published(self.name, self.task)


def row(table: Mapping[str, T], task: str, regime: str) -> T:
    """The row of a task in the table of a source.

    Raises:
        ValueError: for a task that the source did not train on; the message lists those that it did.
    """
    if task not in table:
        raise ValueError(f"the regime {regime!r} has no {task!r}{hint(task, list(table))}")
    return table[task]


def epoch(task: str, batch: int) -> int:
    """Steps of an epoch whose incomplete last batch is left out."""
    return EXAMPLES[task] // batch


def recipe_of(steps: int, batch_size: int, lr: float, warmup: int, every: int, **more: Any) -> Recipe:
    """A recipe in the sources' terms: steps of warm-up, and every how many steps the validation split is scored."""
    recipe: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": warmup / (more.get("schedule_steps") or steps),
        "betas": (0.9, 0.999),
        "clip": 0.0,
        "log_every": max(1, min(100, every // 5)),
        "eval_every": every,
        "checkpoint_every": every,
        "eval_batch_size": batch_size,
    }
    return Recipe(**{**recipe, **more})
