"""What an experiment is about: a task gives a model, batches, a loss and metrics; the trainer does the rest.

A task is a frozen dataclass. Its fields are its settings, so they become command-line options, they are written to
`config.json`, and two tasks with equal settings are equal. A package adds tasks through the entry-point group
`matmix.tasks`; a class that is merely importable is named as `package.module:Class`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

Split = Literal["train", "val", "test"]
T = TypeVar("T")


class Batch(NamedTuple):
    """Inputs `x` and targets `y` of one batch, first axis B; `mask` (B, L) bool, True = a real token."""

    x: Tensor
    y: Tensor
    mask: Tensor | None = None

    def map(self, function: Any) -> Batch:
        """Apply `function` to every tensor of the batch."""
        return Batch(function(self.x), function(self.y), None if self.mask is None else function(self.mask))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: linear warm-up, decay to `lr_end * lr`. One step is one update of the weights.

    `batch_size` counts the examples of one step over all devices and all `accumulate` parts. Tensors with fewer than
    two axes, and parameters that `matmix.no_weight_decay` names, are not decayed.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 1e-3
    lr_end: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises to `lr`."""
    power: float = 0.0
    """The decay is (1 - t)^power over the rest of the steps: 1 is linear; 0 = half a cosine."""
    optimizer: str = "adamw"
    """"adamw" is torch's; any other is timm's of that name ("lamb", "lion", ...), with its defaults except `betas`."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    """Largest norm of the gradient; 0 = no clipping."""
    ema: float = 0.0
    """Decay, a step, of a running average of the weights, which is what is evaluated and kept then; 0 = none."""
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 500
    eval_batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"Recipe.batch_size={self.batch_size} must divide by accumulate={self.accumulate}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"Recipe.warmup is a share of the steps in [0, 1], got {self.warmup}")
        if self.power < 0:
            raise ValueError(f"Recipe.power is the exponent of a polynomial decay, or 0 for a cosine, got {self.power}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Recipe.ema is a decay in [0, 1), got {self.ema}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"Recipe.precision must be 'no', 'bf16' or 'fp16', got {self.precision!r}")

    def lr_at(self, step: int) -> float:
        """Learning rate of update `step` (0 is the first)."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return self.lr * (step + 1) / rise
        progress = (step - rise) / max(1, self.steps - rise)
        left = (1 - progress) ** self.power if self.power else 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (self.lr_end + (1 - self.lr_end) * left)


class Task(ABC):
    """Base of all tasks; subclass it as a `@dataclass(frozen=True)`.

    `metric` names the entry of `metrics()` that picks the best weights on the validation split and that tables show.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def recipe(self) -> Recipe:
        """The default training recipe for these settings."""

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """The settings and the recipe behind `--recipe NAME`; "default" is the task as it is, with `recipe()`."""
        if name != "default":
            raise ValueError(f"{type(self).__name__} has no recipe {name!r}; it has: default")
        return self, self.recipe()

    @abstractmethod
    def model(self, mixer: str, seed: int) -> nn.Module:
        """A new model around the mixer spec. Same seed: same weights outside of the mixers, whatever the mixer."""

    @abstractmethod
    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Batches of a split, on the CPU. `train` never ends; `val` and `test` go through their examples once.

        Process `rank` of `world` gets its share of each batch. The batch of a step depends on `(seed, step)` alone and
        `start` is the step to begin with: with that a resumed run sees the data that an uninterrupted one sees.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar to minimise, a mean over the batch: over what `weight` counts. Not asked for where that is 0."""

    def weight(self, batch: Batch) -> float:
        """Over how much of this batch, still on the CPU, `loss` is a mean: the examples. A task whose loss leaves
        targets out counts those that are in; so a step is one mean, whatever the number of parts and processes."""
        return len(batch.x)

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """New `torchmetrics` objects by name; each gets `prediction(output, batch)`."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the model on a batch."""
        return model(batch.x) if batch.mask is None else model(batch.x, mask=batch.mask)

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predictions and targets as the metrics want them."""
        return output, batch.y

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the model for one example (B = 1): what costs are counted on."""
        return (next(iter(self.batches("val", 1))).x[:1],)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test metrics of trivial predictors, by name: `{"chance": {"accuracy": 0.1}}`."""
        return {}

    def found(self) -> str:
        """What data were found, for the command line to say before it begins; "" says nothing."""
        return ""

    def facts(self) -> dict[str, Any]:
        """What a reader must know about the data: sizes, gaps, and how they were handled. Goes to `result.json`."""
        return {}


@cache
def _entries() -> dict[str, Any]:
    return {entry.name: entry for entry in sorted(entry_points(group="matmix.tasks"), key=lambda e: e.name)}


def list_tasks() -> list[str]:
    """Names of all installed tasks."""
    return list(_entries())


def task_class(name: str) -> type[Task]:
    """The class behind a task name or a `package.module:Class` path; an unknown name lists the close ones."""
    if name in _entries():
        return _entries()[name].load()
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"task {name!r} cannot be imported: {error}") from error
        if not (isinstance(found, type) and issubclass(found, Task)):
            raise ValueError(f"task {name!r} is not a subclass of matmix.experiments.task.Task")
        return found
    close = difflib.get_close_matches(name, list_tasks(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"installed: {', '.join(list_tasks())}"
    raise ValueError(f"unknown task {name!r}; {hint}")


def build(cls: type[T], settings: dict[str, Any]) -> T:
    """A dataclass from JSON-like settings; an unknown key is an error that lists the known ones."""
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"
            raise ValueError(f"{cls.__name__} has no setting {key!r}{hint}")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
