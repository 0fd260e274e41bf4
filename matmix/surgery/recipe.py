"""What distillation is told: how long each stage takes, at which learning rates, and what it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from matmix.ranges import Amount, Chance, Count, Positive, Seed, Share
from matmix.settings import Settings

Train = Literal["replaced", "all"]
STAGES = ("matrices", "outputs", "predictions")


@dataclass(frozen=True)
class Stage(Settings):
    """One stage: AdamW with a linear rise and a cosine fall of the learning rate."""

    steps: Count
    lr: Positive = 1e-3
    lr_end: Share = 0.1
    """The last learning rate, as a share of ``lr``."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises to ``lr``."""
    weight_decay: Amount = 0.0
    """Of matrices; vectors and what a mixer names (``matmix.no_weight_decay``) are left alone."""
    betas: tuple[Chance, Chance] = (0.9, 0.95)
    clip: Positive | None = 1.0
    """Largest norm of the gradient; None: whatever it is."""
    train: Train = "replaced"
    """``"replaced"``: the modules at the sites; ``"all"``: every parameter of the student that takes a gradient."""

    def lr_at(self, step: int, lr: float | None = None) -> float:
        """The learning rate of a step, counted from 0, where the highest is `lr`, or the stage's own."""
        peak = self.lr if lr is None else lr
        rise = round(self.warmup * self.steps)
        if step < rise:
            return peak * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return peak * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class DistillRecipe(Settings):
    """The stages of MOHAWK (arXiv 2408.10189) in their order; None leaves one out.

    ::

        DistillRecipe(matrices=None, outputs=Stage(500, lr=2e-3), predictions=Stage(2000, lr=5e-4, train="all"))
    """

    matrices: Stage | None = Stage(500)
    """The student's matrices to the teacher's, at each replaced site on the teacher's inputs."""
    outputs: Stage | None = Stage(500)
    """What each replaced site gives to what the teacher's gave, on the teacher's inputs."""
    predictions: Stage | None = Stage(1000, train="all")
    """The student's predictions to the teacher's, or the loss that ``distill`` is given."""
    temperature: Positive = 1.0
    """Of both distributions in the divergence of predictions, whose gradient is scaled by its square."""
    seed: Seed = 0
    """Each step draws (dropout; data of a ``batches(step)`` that draws) from (seed, stage, step)."""
    log_every: Count = 10
    """Steps between two entries of the history."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints, where there is a folder; the end of a stage is one too."""

    def __post_init__(self) -> None:
        if not any(True for _ in self.stages()):
            raise ValueError(f"DistillRecipe leaves out every stage: {', '.join(STAGES)}")

    def stages(self) -> Iterator[tuple[str, Stage]]:
        """The stages that are not left out, by name."""
        for name in STAGES:
            stage = getattr(self, name)
            if stage is not None:
                yield name, stage

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for _, stage in self.stages())

    def to_json(self) -> dict[str, Any]:
        """Nested dicts of numbers and strings, tuples as lists: what a checkpoint carries."""
        plain = dataclasses.asdict(self)
        for name, stage in self.stages():
            plain[name]["betas"] = list(stage.betas)
        return plain
