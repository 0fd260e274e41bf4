"""Accuracy that gives every class the same weight, batch by batch: the one that MAD reports."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy


class BatchMacroAccuracy(Metric):
    """The recall of each class that is asked or said, averaged over these classes, and then over the batches.

    A class that is only said, wrongly, counts as 0. It depends on the size of the batches, and with several processes
    on their shares: it is here since published tables have it.
    """

    full_state_update = False
    total: Tensor
    batches: Tensor

    def __init__(self, classes: int, ignore_index: int = -100) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index
        for name in ("total", "batches"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Said and wanted, integers of one shape."""
        labelled = target != self.ignore_index
        self.total += multiclass_accuracy(prediction[labelled], target[labelled], self.classes, average="macro")
        self.batches += 1

    def compute(self) -> Tensor:
        return self.total / self.batches
