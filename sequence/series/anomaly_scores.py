"""Scores of anomaly detection: areas that no threshold enters, and F1 at a threshold from reference values.

A target holds windows of a test and of a reference, from which a threshold comes; `test` (B,) says which are which.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


class AnomalyScore(Metric):
    """Collects how anomalous each step is; `score` makes a number of it.

    An update gets scores (B, L), and a target with "labels" (B, L), "counts" (B, L), which steps are looked at, "test"
    (B,), and "place" (B,), the order of the windows, which processes deal out among them.
    """

    full_state_update = False
    higher_is_better = True
    STATES = ("scores", "labels", "counts", "test", "place")

    def __init__(self) -> None:
        super().__init__()
        for name in self.STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, target: dict[str, Tensor]) -> None:
        for name in self.STATES:
            getattr(self, name).append(scores.float() if name == "scores" else target[name])

    def compute(self) -> Tensor:
        found = [getattr(self, name) for name in self.STATES]
        scores, labels, counts, test, place = (torch.cat(each) if isinstance(each, list) else each for each in found)
        order = place.argsort(stable=True)
        scores, labels, counts, test = scores[order], labels[order], counts[order], test[order]
        return self.score(scores[test][counts[test]], labels[test][counts[test]], scores[~test][counts[~test]])

    def score(self, scores: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Of steps in their order."""
        raise NotImplementedError


class AveragePrecision(AnomalyScore):
    """Area under precision and recall, each step by itself."""

    def score(self, scores: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        return binary_average_precision(unit(scores), labels.long())


class AUROC(AnomalyScore):
    """Area under the receiver's curve."""

    def score(self, scores: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        return binary_auroc(unit(scores), labels.long())


class VUSPR(AnomalyScore):
    """Volume under the surface of range-based precision and recall (Paparrizos et al., VLDB 2022), by aeon: slow.

    Args:
        buffer: largest extension of an anomaly, in steps.
    """

    def __init__(self, buffer: int) -> None:
        from matmix.experiments.extras import require

        require("aeon")
        super().__init__()
        self.buffer = buffer

    def score(self, scores: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        from aeon.benchmarking.metrics.anomaly_detection import range_pr_vus_score

        arrays = labels.long().cpu().numpy(), scores.double().cpu().numpy()
        return torch.tensor(range_pr_vus_score(*arrays, max_buffer_size=self.buffer))


class F1(AnomalyScore):
    """F1 of what lies above a threshold: so many percent of the reference values do.

    Args:
        ratio: percent.
        with_test: the values of the test are reference values too, as published.
        adjusted: an anomaly of which one step is found counts as found in all of its steps, as published.
    """

    def __init__(self, ratio: float, *, with_test: bool = False, adjusted: bool = False) -> None:
        super().__init__()
        self.ratio, self.with_test, self.adjusted = ratio, with_test, adjusted

    def score(self, scores: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        limit = threshold(*((reference, scores) if self.with_test else (reference,)), ratio=self.ratio)
        found, truth = (scores.double() > limit).cpu().numpy(), labels.cpu().numpy()
        found = point_adjusted(found, truth) if self.adjusted else found
        both = (found & truth).sum()
        return torch.tensor(2 * both / max(1, found.sum() + truth.sum()))


def threshold(*scores: Tensor, ratio: float) -> float:
    """The value that `ratio` percent of the scores lie above."""
    return float(np.percentile(torch.cat(scores).double().cpu().numpy(), 100 - ratio))


def point_adjusted(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Steps that are found, those of an anomaly all where one of them is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], labels.astype(np.int8), [0]))))
    adjusted = found.copy()
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        adjusted[first:end] = found[first:end].any()
    return adjusted


def unit(scores: Tensor) -> Tensor:
    """Ranks from 0 to 1, equal for equal scores: torchmetrics takes what lies outside for logits, and a sigmoid makes
    large scores equal."""
    values, inverse = scores.unique(return_inverse=True)
    return inverse.double() / max(1, len(values) - 1)
