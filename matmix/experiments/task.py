"""What an experiment is about: a task gives a model, batches, a loss and metrics; the trainer does the rest.

A task is a frozen dataclass. Its fields are its settings, so they become command-line options, they are written to
`config.json`, and two tasks with equal settings are equal. `registry.py` says how a task gets its name.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from matmix.experiments.recipe import Recipe as Recipe  # where everybody looks for it
from matmix.ranges import shown
from matmix.settings import Settings
from matmix.spec import unknown_option

if TYPE_CHECKING:
    from torchmetrics import Metric

Split = str
"""The name of a part of the data: "train", "val", "test", or one of `Task.tests()`."""
SPLITS = ("train", "val", "test")
T = TypeVar("T")


class Scored(NamedTuple):
    """A finished run as a report tells a task of it."""

    arm: str
    """Its name in the study, and `mixer`: the spec."""
    mixer: str
    seed: int
    score: float
    """The test score in the metric of the task."""
    options: dict[str, Any]
    """Settings of the task, facts and the scores of baselines in that metric, as `result.json` has them."""
    facts: dict[str, Any]
    baselines: dict[str, float]


class Batch(NamedTuple):
    """Inputs and targets of one batch; `mask` (B, L) bool, True = a real token.

    `x` and `y` are a tensor each, or tuples and dicts of tensors, nested as you like (pairs of texts, values with time
    marks, what a tokenizer gives). The first axis of every tensor is B, the examples.
    """

    x: Any
    y: Any
    mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Any]) -> Batch:
        """Apply `function` to every tensor of the batch; what is no tensor is left as it is."""
        if isinstance(self.x, Tensor) and isinstance(self.y, Tensor):  # a walk through the nests takes 30 us
            return Batch(function(self.x), function(self.y), None if self.mask is None else function(self.mask))
        mapped: Batch = tree_map_only(Tensor, function, self)
        return mapped

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many parts of neighbours."""
        if count == 1:
            return [self]
        examples(self)
        return [self.map(partial(_part, count=count, index=index)) for index in range(count)]


def _part(tensor: Tensor, count: int, index: int) -> Tensor:
    parts = tensor.chunk(count)  # fewer than asked for where they do not divide: then some are smaller, or empty
    return parts[index] if len(parts) == count else tensor.tensor_split(count)[index]


def example_means(values: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The weighted mean of what each of so many examples has, 0 where nothing counts, and the sum of its weights.

    Args:
        values: one example behind the other, as many of each; what has no weight may be no number.
        weights: of the same shape.
    """
    rows, weight = values.reshape(count, -1), weights.reshape(count, -1).to(torch.float64)
    total = torch.where(weight > 0, rows, 0).to(torch.float64).mul(weight).sum(1)
    whole = weight.sum(1)
    return torch.where(whole > 0, total / whole, 0), whole


def examples(tree: Any) -> int:
    """How many examples a batch, or any nest of tensors, holds: the size of their one first axis.

    Raises:
        ValueError: if there is no tensor, or the first axes differ.
    """
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(f"the first axis of every tensor of a batch counts its examples; their shapes are {shapes}")
    return shapes[0][0]


def inputs_of(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`x` of a batch as the arguments of a model: a tuple by position, a dict by name, anything else alone."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


class Task(Settings, ABC):
    """Base of all tasks; subclass it as a `@dataclass(frozen=True)` whose fields, its settings, have defaults.

    A setting is what its annotation says, `length: int` or better `length: Count` (see `matmix.settings`); anything
    else is refused before the task is made, so no method has to ask.

    `metric` names the entry of `metrics()` that picks the best weights on the validation split and that tables show.
    For data that fit in memory, `TensorTask` does most of this.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    aliases: ClassVar[dict[str, str]] = {}
    """Short names of settings on the command line: with {"data": "folder"}, `--data X` is `--task.folder X`."""

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
        """Batches of a split, on the CPU. `train` never ends; `val`, `test` and those of `tests()` go through their
        examples once.

        Process `rank` of `world` gets its share of each batch. The batch of a step depends on `(seed, step)` alone and
        `start` is the step to begin with: with that a resumed run sees the data that an uninterrupted one sees. Other
        splits are the same whatever the seed, unless a published protocol draws their order or their masks anew in each
        evaluation: the trainer gives each one a seed of its own, made of the run's and the step.
        """

    def in_another_order(self, batch: Batch, draw: torch.Generator) -> Batch:
        """The batch with the tokens of each input in a drawn order: what a model scores on it does not hang on order.

        Raises:
            NotImplementedError: where inputs have no order, or the task does not know it.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no order of its inputs")

    def tests(self) -> tuple[str, ...]:
        """Names of further splits to test on, such as "test@2x": the test at twice the length of training.

        `batches` gives them. They are scored after "test", with the same weights, and reported beside it; they choose
        nothing.
        """
        return ()

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor | Mapping[str, Tensor] | tuple[Tensor, ...]:
        """What to minimise, a mean over the batch: over what `weight` counts. Not asked for where that is 0.

        One scalar, or several with names (a dict, or a NamedTuple): then their sum is minimised, so a factor before a
        part belongs in the part, and each is logged and scored on validation by itself, as "loss.NAME" beside "loss",
        the sum. Every call gives the same names.
        """

    def weight(self, batch: Batch) -> float:
        """Over how much of this batch, still on the CPU, `loss` is a mean: the examples. A task whose loss leaves
        targets out counts those that are in; so a step is one mean, whatever the number of parts and processes."""
        return examples(batch.x)

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """New `torchmetrics` objects by name; each gets `prediction(output, batch)`."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Call the model on a batch: `x` by position, a tuple as several arguments, a dict by name. What it returns is
        for `loss` and `prediction` alone to understand: a tensor, or another library's object."""
        args, named = inputs_of(batch.x)
        return model(*args, **named) if batch.mask is None else model(*args, **named, mask=batch.mask)

    def prediction(self, output: Any, batch: Batch) -> tuple[Any, Any] | None:
        """Predictions and targets as the metrics want them; None for a batch with nothing for them, such as one without
        labels. Where validation has nothing at all, the loss picks the best weights."""
        return output, batch.y

    def example_scores(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """A number for each example of a batch, and how much it counts for, (B,) each, whose weighted mean over the
        test split is the test `metric`; None where the metric is no such mean. From them a report says how far other
        test data may move a difference.

        Here: the share of its labels that each example got, where the metric is "accuracy". Labels below 0 are none.
        """
        found = self.prediction(output, batch) if self.metric == "accuracy" else None
        if found is None or not all(isinstance(part, Tensor) for part in found):
            return None
        said, labels = found
        said = said.argmax(-1) if said.shape[:-1] == labels.shape else said
        count = examples(batch.x)
        if said.shape != labels.shape or labels.numel() % count:
            return None
        return example_means(said == labels, labels >= 0, count)

    def example_span(self) -> int:
        """How many neighbouring examples of the test split may share data: 1, or the steps of overlapping windows."""
        return 1

    def example(self) -> tuple[Any, ...] | dict[str, Any]:
        """Inputs of the model for one example (B = 1), by position or by name: what costs are counted on."""
        args, named = inputs_of(next(iter(self.batches("val", 1))).map(lambda tensor: tensor[:1]).x)
        return named or args

    def title(self) -> str:
        """What names runs of these settings besides task and mixer, such as a model; "" adds nothing."""
        return ""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test metrics of trivial predictors, by name: `{"chance": {"accuracy": 0.1}}`."""
        return {}

    def published(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Published test metrics, by name and source, that were got under these very settings and this recipe; {} for
        one that was published as a failure."""
        return {}

    def solved_above(self) -> float | None:
        """The test score above which a run has learnt its task, where a run either learns it or stays at chance.

        A report then counts the runs that did and gives their median; it never averages the two kinds. None: scores
        lie around one value.
        """
        return None

    @classmethod
    def together(cls, runs: Sequence[Scored]) -> list[str]:
        """What all finished runs of this task in a report say together, whatever their settings, in sentences; [] is
        nothing. They stand at the head of the report."""
        return []

    def found(self) -> str:
        """What data were found, for the command line to say before it begins; "" says nothing."""
        return ""

    def facts(self) -> dict[str, Any]:
        """What a reader must know about the data: sizes, gaps, and how they were handled. Goes to `result.json`."""
        return {}


def check_metric(task: Task) -> dict[str, Metric]:
    """The metrics of a task.

    Raises:
        ValueError: if the one that picks the best weights is not among them.
    """
    metrics = task.metrics()
    if task.metric not in metrics:
        raise ValueError(f"{type(task).__name__}.metric is {task.metric!r}; metrics() has {list(metrics)}")
    return metrics


def check_tests(task: Task) -> tuple[str, ...]:
    """The further test splits of a task.

    Raises:
        ValueError: if a name stands twice, or is that of another split.
    """
    names = task.tests()
    for name in names:
        if name in SPLITS or names.count(name) > 1:
            raise ValueError(f"{type(task).__name__}.tests() must name splits besides {', '.join(SPLITS)}: {names}")
    return names


def named_losses(loss: Any) -> dict[str, Tensor]:
    """What `Task.loss` returned as parts by name; {} for one scalar.

    Raises:
        ValueError: for something else.
    """
    if isinstance(loss, Tensor):
        return {}
    named = dict(loss) if isinstance(loss, Mapping) else loss._asdict() if hasattr(loss, "_asdict") else {}
    if not named or not all(isinstance(part, Tensor) and part.numel() == 1 for part in named.values()):
        raise ValueError(f"a loss is a scalar tensor, or a dict or NamedTuple of some, got {loss!r}")
    return named


def total_loss(loss: Any) -> Tensor:
    """The scalar that is minimised: the sum of the parts of a loss that has some."""
    named = list(named_losses(loss).values())
    return sum(named[1:], named[0]) if named else loss


def changed(settings: Any, default: Any) -> dict[str, Any]:
    """Which settings differ from the defaults, and what they are.

    Args:
        settings, default: dataclasses of one kind, or what `dataclasses.asdict` makes of them.
    """
    mine, plain = (one if isinstance(one, dict) else dataclasses.asdict(one) for one in (settings, default))
    return {name: value for name, value in mine.items() if value != plain[name]}


def build(cls: type[T], settings: dict[str, Any]) -> T:
    """A dataclass from JSON-like settings, whose lists are tuples; nothing else is turned into another kind.

    Raises:
        ValueError: for settings that are no table, an unknown key (the known ones are listed), one that is missing, or
            a value that its annotation does not let through.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"settings of {cls.__name__} must be a table of names and values, got {shown(settings)}")
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise ValueError(unknown_option(cls.__name__, key, list(known), "setting"))
    for key, field in known.items():
        if field.default is field.default_factory is dataclasses.MISSING and key not in settings:
            raise ValueError(f"{cls.__name__}.{key} must be given; got {', '.join(settings) or 'no setting'}")
    return cls(**{key: _tupled(value) for key, value in settings.items()})


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
