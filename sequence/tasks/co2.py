"""Weekly CO2 at Mauna Loa, 1958 to 2001 (Keeling & Whorf), as statsmodels ships it: forecasting, no download."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, example_means
from matmix.experiments.tensor_task import TensorTask
from matmix.ranges import Count, OpenShare
from sequence.tasks.settings import EncoderSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

YEAR = 52
"""Weeks after which the season repeats, for the baselines."""


@dataclasses.dataclass(frozen=True)
class CO2(EncoderSettings, TensorTask):
    """Forecast the next `horizon` weeks of atmospheric CO2 (ppm) from the last `length` weeks.

    59 of the 2284 weeks were not measured. As an input such a week is interpolated linearly between its neighbours and
    a second channel says so (1 = measured); as a target it is missing (NaN): neither loss nor metrics look at it.
    Splits are contiguous in time, 70 / 10 / 20 % of the weeks by default; the weeks to forecast lie within the split,
    the inputs may reach back before it. Interpolation never crosses into a later split. The unit of the inputs is the
    standard deviation of the measured training weeks, relative to the last input week (Zeng et al. 2022, 2205.13504,
    NLinear): the level of the test years is above anything seen in training.
    """

    length: Count = 104
    horizon: Count = 26
    dim: Count = 32
    train_share: OpenShare = 0.7
    val_share: OpenShare = 0.1

    metric: ClassVar[str] = "mae"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.train_share + self.val_share >= 1:
            raise ValueError(
                f"CO2: train_share and val_share must leave a test split, got {self.train_share} and {self.val_share}"
            )

    def recipe(self) -> Recipe:
        return Recipe(steps=400, batch_size=64, lr=2e-3, eval_every=50, log_every=20)

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.encoder(mixer, seed, channels=2, grid=(self.length,), head="forecast", outputs=self.horizon)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return windows(self.length, self.horizon, self.train_share, self.val_share)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        prediction, target = self._measured(output, batch)
        return nn.functional.mse_loss(prediction, target)

    def weight(self, batch: Batch) -> float:
        return batch.y.numel() - int(batch.y.isnan().sum())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        prediction, target = self._measured(output, batch)
        scale = weeks(self.train_share).scale
        return prediction * scale, target * scale

    def example_scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The absolute error of each window, over its measured weeks."""
        error = (output - batch.y).abs() * weeks(self.train_share).scale
        return example_means(error, ~batch.y.isnan(), len(error))

    def _measured(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        known = ~batch.y.isnan()
        return output[known], batch.y[known]

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        return {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores (ppm) on the test windows of forecasts that need no training."""
        x, y = self.data("test")
        scale = weeks(self.train_share).scale
        values, known = x[..., 0].double(), ~y.isnan()
        steps = torch.arange(self.horizon)
        forecasts = {"last value": torch.zeros_like(y, dtype=torch.double)}
        if self.length > YEAR:
            last_year = values[:, self.length - YEAR + steps % YEAR]
            forecasts["same week a year ago"] = last_year
            forecasts["same week a year ago, plus the year's growth"] = last_year - values[:, -1 - YEAR, None]
        scores = {}
        for name, forecast in forecasts.items():
            error = (forecast - y.double())[known] * scale
            scores[name] = {"mae": error.abs().mean().item(), "rmse": error.square().mean().sqrt().item()}
        return scores

    def facts(self) -> dict[str, Any]:
        series = weeks(self.train_share)
        missing = ~series.measured
        ends = _ends(len(missing), self.train_share, self.val_share)
        names, starts = ("train", "val", "test"), (0, *ends[:-1])
        return {
            "unit of the scores": "ppm",
            "weeks": len(missing),
            "missing weeks": int(missing.sum()),
            "missing weeks by split": {
                name: int(missing[a:b].sum()) for name, a, b in zip(names, starts, ends, strict=True)
            },
            "windows": {name: len(x) for name, (x, _) in self.splits().items()},
            "missing targets, not scored": {name: int(y.isnan().sum()) for name, (_, y) in self.splits().items()},
            "scale (ppm, of measured training weeks)": series.scale,
        }


class Weeks(NamedTuple):
    """The series by week (n,): ppm with NaN where `measured` is False, and the standard deviation for scaling."""

    values: np.ndarray
    measured: np.ndarray
    scale: float


@cache
def weeks(train_share: float) -> Weeks:
    """The measured series; the scale is fitted on the measured weeks of the training split alone."""
    from statsmodels.datasets import co2

    values = co2.load_pandas().data["co2"].to_numpy(dtype=np.float64)
    train = values[: int(train_share * len(values))]
    return Weeks(values, ~np.isnan(values), float(np.nanstd(train)))


@cache
def windows(length: int, horizon: int, train_share: float, val_share: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs (n, length, 2), change since the last input week and 1 = measured; targets (n, horizon), NaN = missing."""
    values, measured, scale = weeks(train_share)
    found, begin = {}, 0
    for split, end in zip(("train", "val", "test"), _ends(len(values), train_share, val_share), strict=True):
        first = max(begin, length)  # the first week to forecast
        count = end - horizon - first + 1
        if count < 1:
            raise ValueError(f"CO2: length={length} and horizon={horizon} leave no window in the {split} split")
        # Gaps are filled from what this split may know: nothing at or after its end.
        filled, positions = values[:end].copy(), np.arange(end)
        known = measured[:end]
        filled[~known] = np.interp(positions[~known], positions[known], values[:end][known])
        starts = first + np.arange(count)[:, None]
        past, future = starts - length + np.arange(length), starts + np.arange(horizon)
        level = filled[past[:, -1:]]
        x = np.stack([(filled[past] - level) / scale, known[past].astype(np.float64)], axis=-1)
        y = (values[future] - level) / scale
        found[split] = (torch.from_numpy(x).float(), torch.from_numpy(y).float())
        begin = end
    return found


def _ends(weeks: int, train_share: float, val_share: float) -> tuple[int, int, int]:
    return int(train_share * weeks), int((train_share + val_share) * weeks), weeks
