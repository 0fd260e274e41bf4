"""What distillation is told: how long each stage takes, at which learning rates, and what it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

Train = Literal["replaced", "all"]
STAGES = ("matrices", "outputs", "predictions")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, not negative, got {value!r}")
    return float(value)


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True)
class Stage:
    """One stage: AdamW with a linear rise and a cosine fall of the learning rate."""

    steps: int
    lr: float = 1e-3
    lr_end: float = 0.1
    """The last learning rate, as a share of ``lr``."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises to ``lr``."""
    weight_decay: float = 0.0
    """Of matrices; vectors and what a mixer names (``matmix.no_weight_decay``) are left alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    """Largest norm of the gradient; None: whatever it is."""
    train: Train = "replaced"
    """``"replaced"``: the modules at the sites; ``"all"``: every parameter of the student that takes a gradient."""

    def __post_init__(self) -> None:
        _whole("Stage.steps", self.steps, 1)
        for name in ("lr", "lr_end", "warmup", "weight_decay"):
            _number(f"Stage.{name}", getattr(self, name))
        if self.lr == 0:
            raise ValueError("Stage.lr must be above 0: leave a stage out by None in its place")
        for name in ("lr_end", "warmup"):
            if getattr(self, name) > 1:
                raise ValueError(f"Stage.{name} is a share in [0, 1], got {getattr(self, name)!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Stage.betas must be two numbers in [0, 1), got {self.betas!r}")
        if self.clip is not None and not (_number("Stage.clip", self.clip) > 0):
            raise ValueError(f"Stage.clip must be above 0, or None for no clipping, got {self.clip!r}")
        if self.train not in get_args(Train):
            raise ValueError(f"Stage.train must be {' or '.join(map(repr, get_args(Train)))}, got {self.train!r}")
        object.__setattr__(self, "betas", tuple(self.betas))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return self.lr * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.lr * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class DistillRecipe:
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
    temperature: float = 1.0
    """Of both distributions in the divergence of predictions, whose gradient is scaled by its square."""
    seed: int = 0
    """Each step draws (dropout; data of a ``batches(step)`` that draws) from (seed, stage, step)."""
    log_every: int = 10
    """Steps between two entries of the history."""
    checkpoint_every: int = 500
    """Steps between two checkpoints, where there is a folder; the end of a stage is one too."""

    def __post_init__(self) -> None:
        for name in STAGES:
            stage = getattr(self, name)
            if stage is not None and not isinstance(stage, Stage):
                raise TypeError(f"DistillRecipe.{name} must be a Stage or None, got {stage!r}")
        if not any(True for _ in self.stages()):
            raise ValueError(f"DistillRecipe leaves out every stage: {', '.join(STAGES)}")
        if not _number("DistillRecipe.temperature", self.temperature) > 0:
            raise ValueError(f"DistillRecipe.temperature must be above 0, got {self.temperature!r}")
        _whole("DistillRecipe.seed", self.seed, 0)
        _whole("DistillRecipe.log_every", self.log_every, 1)
        _whole("DistillRecipe.checkpoint_every", self.checkpoint_every, 1)

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
