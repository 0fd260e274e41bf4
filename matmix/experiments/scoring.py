"""Loss and metrics of a model on a split."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from matmix.experiments.step import gather_objects
from matmix.experiments.task import Batch, Split, Task, check_metric, named_losses, total_loss
from matmix.ops.sizes import LengthError

if TYPE_CHECKING:
    from torchmetrics import MeanMetric, Metric


class Refused(ValueError):
    """Another process could not score its batches."""


def agreed(failures: list[tuple[bool, str]], own: ValueError | None) -> ValueError:
    """One kind of error in all processes, of what failed in some (whether by its length, and the message): a
    LengthError, after which a run goes on, only where there is no other."""
    lengths = all(length for length, _ in failures)
    if own is not None and isinstance(own, LengthError) == lengths:
        return own
    text = next(text for length, text in failures if length == lengths)
    return LengthError(text) if lengths else Refused(text)


class Scorer:
    """Loss and metrics of a split, over all its batches and all ranks."""

    def __init__(self, task: Task, accelerator: Accelerator, batch_size: int) -> None:
        from torchmetrics import MeanMetric

        self.task, self.accelerator, self.batch_size = task, accelerator, batch_size
        self.new_mean = lambda: MeanMetric().to(accelerator.device)
        self.metrics = {name: metric.to(accelerator.device) for name, metric in check_metric(task).items()}
        self.mean = self.new_mean()
        self.parts: dict[str, MeanMetric] = {}  # of a loss that has some, by name
        self.seconds = 0.0
        self._kept: list[Tensor] | None = None  # scores of single examples and their weights, where they are asked for

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, split: Split, seed: int = 0, change: Callable[[Batch, int], Batch] | None = None
    ) -> dict[str, float]:
        """Raises a ValueError in every process where one of them does, of one kind: none waits for what will not come.

        Args:
            seed: for tasks that draw something anew in each evaluation (see `Task.batches`).
            change: what is done to each batch, still on the CPU, by its number.
        """
        began, training = time.perf_counter(), model.training
        model.eval()
        try:
            return self._score(model, split, seed, change)
        finally:
            model.train(training)
            self.seconds = time.perf_counter() - began

    def _score(
        self, model: nn.Module, split: Split, seed: int, change: Callable[[Batch, int], Batch] | None
    ) -> dict[str, float]:
        error: ValueError | None = None
        try:
            self._update(model, split, seed, change)
        except ValueError as raised:
            error = raised
        failed = None if error is None else (isinstance(error, LengthError), str(error))
        failures = list(filter(None, gather_objects(failed, self.accelerator.num_processes)))
        found = {"loss": self.mean, **self._parts(), **self.metrics}
        try:
            if failures:
                raise agreed(failures, error)
            return {name: float(metric.compute()) for name, metric in found.items() if self._met(name, metric)}
        finally:
            for metric in found.values():
                metric.reset()

    def _update(self, model: nn.Module, split: Split, seed: int, change: Callable[[Batch, int], Batch] | None) -> None:
        task, accelerator = self.task, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        batches = task.batches(split, self.batch_size, seed=seed, rank=rank, world=world)
        for batch in batches if change is None else map(change, batches, itertools.count()):
            weight = float(task.weight(batch))
            batch = batch.map(lambda tensor: tensor.to(accelerator.device, non_blocking=True))
            output = task.forward(model, batch)
            if weight:  # a mean over no targets is not a number
                loss = task.loss(output, batch)
                self.mean.update(total_loss(loss), weight=weight)
                for name, value in named_losses(loss).items():
                    if name not in self.parts:
                        self.parts[name] = self.new_mean()
                    self.parts[name].update(value, weight=weight)
            if self._kept is not None:
                each = task.example_scores(output, batch)
                self._kept = None if each is None else [*self._kept, torch.stack(each).detach().double().cpu()]
            found = task.prediction(output, batch)
            if found is not None:
                for metric in self.metrics.values():
                    metric.update(*found)

    def with_examples(
        self, model: nn.Module, split: Split, seed: int
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray] | None]:
        """Scores of a split, and those of its single examples in their order with their weights.

        None for the latter where the task has none, where their mean is not its metric, and with several processes,
        which see them in turns.
        """
        self._kept = [] if self.accelerator.num_processes == 1 else None
        try:
            scores, kept = self(model, split, seed), self._kept
        finally:
            self._kept = None
        metric = scores.get(self.task.metric)
        if not kept or metric is None:
            return scores, None
        each, weights = torch.cat(kept, 1).numpy()
        if not np.isclose(np.average(each, weights=weights), metric, rtol=1e-4, atol=1e-6):
            return scores, None
        return scores, (each, weights)

    def _met(self, name: str, metric: Metric) -> bool:
        """Whether there was anything for a metric, in any process: a split without labels has no such scores."""
        return name not in self.metrics or any(gather_objects(metric.update_called, self.accelerator.num_processes))

    def _parts(self) -> dict[str, MeanMetric]:
        """The parts of the loss, the same ones on every rank: one may have met no batch that has targets."""
        names = sorted(
            {name for each in gather_objects(list(self.parts), self.accelerator.num_processes) for name in each}
        )
        for name in names:
            if name not in self.parts:
                self.parts[name] = self.new_mean()
        return {f"loss.{name}": self.parts[name] for name in names}
