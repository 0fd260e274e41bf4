"""The windows of a person's series as a task, in memory, for the project's trainer.

All series stand one behind the other in a few long tensors; a window is cut out when it is asked for. A gap in a window
is a straight line between its neighbours where both lie before the window's end, and else the last value before it:
nothing that comes after a window is ever in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from matmix.experiments.operation import Surgery
from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.sampling import once, order
from sequence.series.panel.frames import Series

if TYPE_CHECKING:
    from torchmetrics import Metric

Features = Callable[[pd.DatetimeIndex], np.ndarray]
"""Dates (T,) to features of their time (T, K)."""


class Scale(NamedTuple):
    """Mean and deviation (C,) of the observed training values; the deviation of a constant series is 0."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Of values (T, C); of a column without any, 0 and 0."""
        seen = ~np.isnan(values)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, values, 0).sum(0) / count
        std = np.sqrt((np.where(seen, values - mean, 0) ** 2).sum(0) / count)
        least = np.where(seen, values, np.inf).min(0, initial=np.inf)
        flat = (least == np.where(seen, values, -np.inf).max(0, initial=-np.inf)) | (least == np.inf)
        # A mean of equal values, and with it their deviation, is off by rounding.
        mean, std = np.where(flat & np.isfinite(least), least, mean), np.where(flat, 0.0, std)
        return cls(mean, std)

    def apply(self, values: np.ndarray) -> np.ndarray:
        result: np.ndarray = (values - self.mean) / np.where(self.std > 0, self.std, 1)
        return result

    def undo(self, values: np.ndarray) -> np.ndarray:
        """In the units of the series. A constant series is its constant, whatever was forecast."""
        result: np.ndarray = values * self.std + self.mean
        return result


class Rows(NamedTuple):
    """N rows of all series, scaled; see the module."""

    line: Tensor
    held: Tensor
    following: Tensor
    """The row of the next observed value, this one included; N where there is none."""
    values: Tensor
    """0 where nothing was observed."""
    counts: Tensor
    """Whether a value is observed and of a series that changes: what a loss is over."""
    marks: Tensor
    begins: list[int]
    """The first row of each series."""

    @classmethod
    def of(cls, series: Sequence[Series], scales: Sequence[Scale], features: Features, covariates: Scale) -> Rows:
        parts: list[tuple[np.ndarray, ...]] = []
        begins, begin = [], 0
        for one, scale in zip(series, scales, strict=True):
            values = scale.apply(one.values)
            seen = ~np.isnan(values)
            place = np.arange(len(values))[:, None]
            last = np.maximum.accumulate(np.where(seen, place, -1), 0)
            following = np.minimum.accumulate(np.where(seen, place, len(values))[::-1], 0)[::-1]
            columns = np.arange(values.shape[1])
            # Before its first value a series stands at its mean, which is 0.
            held = np.where(last >= 0, values[last.clip(0), columns], 0.0)
            ahead = values[following.clip(max=len(values) - 1), columns]
            span = np.maximum(following - last, 1)
            inside = (last >= 0) & (following < len(values))
            line = np.where(inside, held + (np.where(inside, ahead, 0) - held) * (place - last) / span, held)
            line[seen] = values[seen]
            marks = np.concatenate([features(one.dates), covariates.apply(one.known)], 1)
            following = np.where(following < len(values), following + begin, np.iinfo(np.int64).max)
            parts.append((line, held, following, np.nan_to_num(values), seen & (scale.std > 0), marks))
            begins.append(begin)
            begin += len(values)
        line, held, following, values, counts, marks = (np.concatenate(each) for each in zip(*parts, strict=True))
        real = [torch.from_numpy(each).float() for each in (line, held, values, marks)]
        return cls(real[0], real[1], torch.from_numpy(following), real[2], torch.from_numpy(counts), real[3], begins)

    def inputs(self, starts: Tensor, lookback: int, horizon: int) -> dict[str, Tensor]:
        """What a model reads of the windows that begin at these rows."""
        past = starts[:, None] + torch.arange(lookback)
        known = self.following[past] < (starts + lookback)[:, None, None]
        future = (starts + lookback)[:, None] + torch.arange(horizon)
        x = torch.where(known, self.line[past], self.held[past])
        return {"x": x, "marks": self.marks[past], "future_marks": self.marks[future]}

    def measured(self, starts: Tensor, lookback: int, horizon: int) -> Tensor:
        """Of the windows that begin at these rows, those with a target that counts."""
        total = torch.cat([torch.zeros(1, dtype=torch.int64), self.counts.any(1).long().cumsum(0)])
        return starts[total[starts + lookback + horizon] > total[starts + lookback]]

    def targets(self, starts: Tensor, lookback: int, horizon: int) -> tuple[Tensor, Tensor]:
        future = (starts + lookback)[:, None] + torch.arange(horizon)
        return self.values[future], self.counts[future]


Error = Callable[[Tensor, Tensor], Tensor]
"""Of a forecast and the truth, elementwise."""


class PanelTask(Task):
    """Windows of `lookback` and `horizon` steps, those to train on and those to validate on by their first rows.

    Loss and score are the mean of `error` over the observed targets. `validated` says whether those to validate on are
    others than those to train on.
    """

    metric = "error"
    higher_is_better = False

    def __init__(
        self, rows: Rows, starts: dict[str, Tensor], lookback: int, horizon: int, error: Error, recipe: Recipe,
        build: Callable[[str], nn.Module], validated: bool,
    ) -> None:  # fmt: skip
        self.rows, self.starts, self.lookback, self.horizon = rows, starts, lookback, horizon
        self.error, self._recipe, self._build, self.validated = error, recipe, build, validated

    def recipe(self) -> Recipe:
        return self._recipe

    def model(self, mixer: str, seed: int) -> nn.Module:
        from matmix.ops.seed import fork_seed

        with fork_seed(seed, "forecaster"):
            return self._build(mixer)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        starts = self.starts[split]
        if split == "train":
            chosen = order(len(starts), batch_size, seed=seed, start=start, rank=rank, world=world)
        else:
            chosen = once(len(starts), batch_size, rank=rank, world=world)
        for at in chosen:
            sizes = starts[at], self.lookback, self.horizon
            yield Batch(self.rows.inputs(*sizes), self.rows.targets(*sizes))

    def weight(self, batch: Batch) -> float:
        return int(batch.y[1].sum())

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        error, counts = self.prediction(output, batch)
        return (error * counts).sum() / counts.sum()

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        values, counts = batch.y
        return self.error(output, values), counts.to(values.dtype)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import MeanMetric

        return {"error": MeanMetric()}


class Plan(NamedTuple):
    """What the trainer asks of a configuration, for a task that is an object of this process."""

    task: PanelTask
    mixer: str
    seed: int

    def make_task(self) -> Task:
        return self.task

    def make_recipe(self) -> Recipe:
        return self.task.recipe()

    def make_model(self, task: Task, *, begun: bool = False, notes: list[str] | None = None) -> nn.Module:
        return task.model(self.mixer, self.seed)

    def make_surgery(self) -> Surgery:
        return Surgery()

    def to_json(self) -> dict[str, Any]:
        return {"task": "forecaster", "mixer": self.mixer, "seed": self.seed}


def split(length: int, lookback: int, horizon: int, held_out: int) -> tuple[range, range]:
    """First rows of the windows of a series to train on and to validate on: the targets of the latter lie in the last
    `held_out` steps, those of the former before."""
    train = range(max(0, length - held_out - lookback - horizon + 1))
    return train, range(max(0, length - held_out - lookback), length - lookback - horizon + 1) if held_out else range(0)
