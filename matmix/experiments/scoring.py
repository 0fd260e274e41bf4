"""Loss and metrics of a model on a split."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from torch import nn

from matmix.experiments.task import Split, Task


class Scorer:
    """Loss and metrics of a split, over all its batches and all ranks."""

    def __init__(self, task: Task, accelerator: Accelerator, batch_size: int) -> None:
        from torchmetrics import MeanMetric

        self.task, self.accelerator, self.batch_size = task, accelerator, batch_size
        self.metrics = {name: metric.to(accelerator.device) for name, metric in task.metrics().items()}
        self.mean = MeanMetric().to(accelerator.device)
        if task.metric not in self.metrics:
            raise ValueError(f"{type(task).__name__}.metric is {task.metric!r}; metrics() has {list(self.metrics)}")
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, model: nn.Module, split: Split) -> dict[str, float]:
        began, task, accelerator = time.perf_counter(), self.task, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        training = model.training
        model.eval()
        for batch in task.batches(split, self.batch_size, rank=rank, world=world):
            weight = float(task.weight(batch))
            batch = batch.map(lambda tensor: tensor.to(accelerator.device, non_blocking=True))
            output = task.forward(model, batch)
            if weight:  # a mean over no targets is not a number
                self.mean.update(task.loss(output, batch), weight=weight)
            prediction, target = task.prediction(output, batch)
            for metric in self.metrics.values():
                metric.update(prediction, target)
        found = {"loss": self.mean, **self.metrics}
        values = {name: float(metric.compute()) for name, metric in found.items()}
        for metric in found.values():
            metric.reset()
        model.train(training)
        self.seconds = time.perf_counter() - began
        return values
