"""Long-term forecasting on ETT, Exchange, Weather, ECL, Traffic, ILI, or a csv file of one's own.

    matmix train forecast --data ETTh1 --model dlinear --task.protocol published
    matmix train forecast --data measured.csv --model "patchtst(depth=2)" --mixer hydra --task.horizon 48

Both protocols have the same splits and the same scaled scores, so their test errors compare. They differ in what picks
the weights: "published" takes the mean of the means of shuffled batches of validation, in which a window of the last,
short batch counts up to 32 times as much as others; "strict" takes every window once. And in what a model is told of
the time: "published" has the hour in all data, "strict" what goes with their frequency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Scored, Split
from matmix.ranges import Whole
from sequence.series.data.windows import Windows, forecast_begins
from sequence.series.naive import forecast_errors
from sequence.series.saturation import saturation
from sequence.series.tasks import scripts
from sequence.series.tasks.published import forecast_scores
from sequence.series.tasks.scripts import Script
from sequence.series.tasks.tables import Draw, TableTask


@dataclasses.dataclass(frozen=True)
class Forecast(TableTask):
    """Forecast the next `horizon` steps of all series from the last `lookback`, scores over scaled values."""

    horizon: Whole = 0
    """Steps to forecast; 0 = the shortest that is published: 96, of ILI 24."""

    @property
    def steps(self) -> int:
        """Steps to forecast."""
        return self.horizon or (24 if self.data_name == "ILI" else 96)

    @property
    def length(self) -> int:
        # Its output stands at the positions of its input.
        return self.steps if self.spec().name == "mamba" and not self.lookback else super().length

    @property
    def begun(self) -> int:
        """Known steps that a decoder begins with: 48, or half of what is read."""
        return min(48, self.length // 2)

    def script(self) -> Script:
        return scripts.forecast(self.spec().name, self.data_name, self.steps)

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.series_model(
            mixer, seed, length=self.length, channels=self.channels, goal="forecast", horizon=self.steps,
            marks=self.mark_count,
        )  # fmt: skip

    def begins(self, split: Split) -> range:
        return forecast_begins(self.splits[split], self.length, self.steps)

    def behind(self) -> int:
        return self.steps

    def batch(self, windows: Windows, draw: Draw, split: Split) -> Batch:
        past, future, marks, future_marks = windows.take(draw.at)
        start = torch.cat((past[:, self.length - self.begun :], torch.zeros_like(future)), 1)
        weight = torch.full((len(past), 1, 1), 1 / draw.whole if draw.alike else 1.0)
        x: dict[str, Tensor] = {"x": past, "marks": marks, "future_marks": future_marks, "start": start}
        return Batch(x, {"values": future, "weight": weight})

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return output, batch.y

    def example_span(self) -> int:
        return self.length + self.steps

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores on the test windows of forecasts that need no training."""
        begins = self._counted("test")
        origins = range(begins.start + self.length, begins.stop + self.length)
        return forecast_errors(self.rows[0], origins, self.steps, self.season)

    def published(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Of the model with its own mixer, where all settings are those of the published script."""
        spec = self.spec()
        same = self.published_protocol and not spec.options and not self.epochs and recipe == self.recipe()
        return forecast_scores(spec.name, self.data_name, self.length, self.steps) if same and self.known else {}

    @classmethod
    def together(cls, runs: Sequence[Scored]) -> list[str]:
        """Of each data set whether it still tells models apart."""
        return saturation(runs)

    def title(self) -> str:
        return f"{super().title()}-{self.steps}"

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "steps read": self.length, "steps to forecast": self.steps, "season": self.season}
