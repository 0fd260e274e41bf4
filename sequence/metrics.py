"""Accuracies of labels along a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryConfusionMatrix
from torchmetrics.functional.classification import multiclass_accuracy


class TokenAccuracy(Metric):
    """The share of labels ``(B, L)`` that are said, of those from a share of the length on to another.

    Args:
        ignore_index: stands where there is no label.
        start, stop: places from ``start * L`` on and below ``stop * L``, so that the first quarter is 0 to 1/4.
    """

    full_state_update = False
    right: Tensor
    count: Tensor

    def __init__(self, ignore_index: int = -100, start: float = 0.0, stop: float = 1.0) -> None:
        super().__init__()
        self.ignore_index, self.start, self.stop = ignore_index, start, stop
        for name in ("right", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Said and wanted, ``(B, L)`` integers."""
        length = target.shape[1]
        part = slice(round(self.start * length), round(self.stop * length))
        prediction, target = prediction[:, part], target[:, part]
        labelled = target != self.ignore_index
        self.right += ((prediction == target) & labelled).sum()
        self.count += labelled.sum()

    def compute(self) -> Tensor:
        return self.right / self.count


class RowAccuracy(TokenAccuracy):
    """The share of rows that are right at each of their labels; rows without one do not count."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        labelled = target != self.ignore_index
        row = labelled.any(1)
        self.right += (((prediction == target) | ~labelled).all(1) & row).sum()
        self.count += row.sum()


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


class MeanNats(Metric):
    """The mean of nats of what is scored; subclasses say what is told to it."""

    full_state_update = False
    nats: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.nats / self.count


class Perplexity(MeanNats):
    """``exp`` of the mean of nats, of those that are scored.

    Every update gets the nats of some tokens and the bytes that these stand for, below 0 where one is not scored.
    """

    def update(self, nats: Tensor, sizes: Tensor) -> None:
        self.nats += nats.double().masked_fill(sizes < 0, 0).sum()
        self.count += (sizes >= 0).sum()

    def compute(self) -> Tensor:
        return super().compute().exp()


class CrossEntropy(MeanNats):
    """The mean of nats: of logits ``(n, V)`` and what was to be said ``(n,)``."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        self.nats += torch.nn.functional.cross_entropy(logits, target, reduction="sum").double()
        self.count += len(target)


class Matthews(BinaryConfusionMatrix):
    """Matthews correlation of two classes; 0 where one of them is never said or never true, as in scikit-learn
    (torchmetrics' own gives 0.025 for the most frequent class of CoLA)."""

    def compute(self) -> Tensor:
        (tn, fp), (fn, tp) = super().compute().double()
        found = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
        return torch.where(found > 0, (tp * tn - fp * fn) / found.clamp(min=1), 0.0)


class BitsPerByte(Perplexity):
    """Bits for each byte of the text that is scored; ``whole`` for each token of it, which may be a character."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole

    def update(self, nats: Tensor, sizes: Tensor) -> None:
        if self.whole:
            return super().update(nats, sizes)
        self.nats += nats.double().masked_fill(sizes < 0, 0).sum()
        self.count += sizes.clamp(min=0).sum()

    def compute(self) -> Tensor:
        return self.nats / self.count / math.log(2)
