"""Errors of forecasts over windows, each value with its weight, and the scores of the M4 competition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from matmix.experiments.task import example_means

M4_GROUPS = {"Yearly": ("Yearly",), "Quarterly": ("Quarterly",), "Monthly": ("Monthly",),
             "Others": ("Weekly", "Daily", "Hourly")}  # fmt: skip
"""How the competition reports its six frequencies."""


class WeightedMean(Metric):
    """Mean of what `parts` makes of predictions and targets, over all batches, in float64.

    A target is a dict with "values" and "weight", which broadcasts over them; other entries are for `parts`.

    Args:
        of: the entry of the target that is scored in place of the output, such as a naive forecast.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, of: str = "") -> None:
        super().__init__()
        self.of = of
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def parts(self, output: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The error of each value."""
        raise NotImplementedError

    def update(self, output: Tensor, target: dict[str, Tensor]) -> None:
        error = self.parts(target[self.of] if self.of else output, target)
        weight = target["weight"].expand_as(error).double()
        # What has no weight may be no number.
        self.total += torch.where(weight > 0, error, 0).double().mul(weight).sum()
        self.weight += weight.sum()

    def compute(self) -> Tensor:
        return self.total / self.weight

    def of_examples(self, output: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean of each example, and its weight, (B,) each."""
        error = self.parts(target[self.of] if self.of else output, target)
        return example_means(error, target["weight"].expand_as(error), len(error))


class SquaredError(WeightedMean):
    """MSE."""

    def parts(self, output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return (output - target["values"]).square()


class AbsoluteError(WeightedMean):
    """MAE."""

    def parts(self, output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return (output - target["values"]).abs()


class SMAPE(WeightedMean):
    """200 |y - f| / (|y| + |f|), 0 where both are 0."""

    def parts(self, output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return smape(output, target["values"])


class MASE(WeightedMean):
    """|y - f| over `target["scale"]`, the mean error of the seasonal naive forecast within the series so far."""

    def parts(self, output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return (output - target["values"]).abs() / target["scale"]


def owa() -> Metric:
    """Mean of SMAPE and MASE, each over that of the forecast `target["naive2"]`."""
    ratios = SMAPE() / SMAPE(of="naive2") + MASE() / MASE(of="naive2")
    return ratios / 2


def smape(forecast: Tensor, target: Tensor) -> Tensor:
    """Of each value. The gradient is that of the numerator alone, as published: the denominator is held constant."""
    scale = (forecast.detach().abs() + target.abs()).clamp_min(torch.finfo(target.dtype).tiny)
    return 200 * (forecast - target).abs() / scale


def m4_summary(scores: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Scores of the six frequencies as the competition reports them: Yearly, Quarterly, Monthly, Others, Average.

    Args:
        scores: by frequency, {"smape": ..., "mase": ..., "naive2_smape": ..., "naive2_mase": ...}.
        counts: series of each frequency; means go by them.
    """

    def mean(names: tuple[str, ...], score: str) -> float:
        return sum(scores[name][score] * counts[name] for name in names) / sum(counts[name] for name in names)

    groups = {**M4_GROUPS, "Average": tuple(name for names in M4_GROUPS.values() for name in names)}
    found = {}
    for group, names in groups.items():
        values = {score: mean(names, score) for score in ("smape", "mase")}
        values["owa"] = sum(values[score] / mean(names, f"naive2_{score}") for score in ("smape", "mase")) / 2
        found[group] = values
    return found
