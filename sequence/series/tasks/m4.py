"""Short-term forecasting on the M4 competition: SMAPE, MASE and OWA, one frequency a run.

    matmix train m4 --model dlinear --task.frequency Weekly --task.folder m4

As published a model reads two horizons, unscaled, of windows that end anywhere in the last horizons of a series, with
SMAPE as its loss. "published" validates on the test; "strict" holds the last horizon of every known series out, for
validation, and pads what is too short with its first value instead of zeros. `sequence.series.metrics.m4_summary` makes
the competition's table of six runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.ranges import Whole, one_of
from matmix.sampling import once
from sequence.series.data.m4 import FREQUENCIES, M4Data, load
from sequence.series.data.windows import epochs
from sequence.series.naive import naive2, seasonal_naive
from sequence.series.tasks import scripts
from sequence.series.tasks.scripts import Script
from sequence.series.tasks.settings import SeriesSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class M4(SeriesSettings, Task):
    """Forecast the next steps of each of many short series."""

    frequency: Annotated[str, one_of(*FREQUENCIES)] = "Hourly"
    """Yearly, Quarterly, Monthly, Weekly, Daily or Hourly."""
    folder: str = ""
    """Where the files are; "" is the folder that the variable MATMIX_DATA names, else the current one."""
    lookback: Whole = 0
    """Steps that are read; 0 = two horizons, as published."""

    metric: ClassVar[str] = "smape"
    higher_is_better: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {"model": "architecture"}

    @property
    def horizon(self) -> int:
        """Steps to forecast: the competition's."""
        return FREQUENCIES[self.frequency].horizon

    @property
    def season(self) -> int:
        """Of MASE and Naive2: the competition's."""
        return FREQUENCIES[self.frequency].season

    @property
    def length(self) -> int:
        """Steps that are read."""
        return self.lookback or 2 * self.horizon

    def script(self) -> Script:
        return scripts.m4(self.spec().name, self.known_options())

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.series_model(
            mixer, seed, length=self.length, channels=1, goal="forecast", horizon=self.horizon, marks=0
        )

    def recipe(self) -> Recipe:
        # Nothing of an evaluation depends on how it is divided.
        return dataclasses.replace(self.training(FREQUENCIES[self.frequency].series), eval_batch_size=256)

    # ------------------------------------------------------------------ the data

    @cached_property
    def data(self) -> M4Data:
        return load(self.frequency, self.folder)

    def known(self, split: Split) -> tuple[np.ndarray, ...]:
        """What of each series may be read for a split."""
        if split == "test" or self.published_protocol:
            return self.data.known
        return tuple(series[: -self.horizon] for series in self.data.known)

    def asked(self, split: Split) -> np.ndarray:
        """What comes behind that, for "val" and "test"."""
        if split == "test" or self.published_protocol:
            return self.data.asked
        return np.stack([series[-self.horizon :] for series in self.data.known])

    def past(self, series: np.ndarray) -> np.ndarray:
        """The last steps of a series; a short one is padded in front."""
        last = series[-self.length :]
        return np.pad(last, (self.length - len(last), 0), **self._padding())  # type: ignore[call-overload]

    def _padding(self) -> dict[str, str]:
        return {"mode": "constant" if self.published_protocol else "edge"}

    @cached_property
    def _scored(self) -> dict[Split, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Inputs and targets of each split that is scored, asked for once."""
        return {split: self._of_split(split) for split in ("val", "test")}

    def _of_split(self, split: Split) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        known, asked = self.known(split), _column(self.asked(split))
        x = _column(np.stack([self.past(series) for series in known]))
        naive = np.stack([naive2(series, self.horizon, self.season) for series in known])
        scales = [np.abs(series[self.season :] - series[: -self.season]).mean() for series in known]
        y = {
            "values": asked,
            "weight": torch.ones_like(asked),
            "naive2": _column(naive),
            "scale": torch.tensor(scales).view(-1, 1, 1),
        }
        return {"x": x, "start": self._start(x[:, -self.horizon :])}, y

    def _start(self, last: Tensor) -> Tensor:
        """What a decoder begins with: a horizon of known steps."""
        return torch.cat((last, torch.zeros(len(last), self.horizon, 1)), 1)

    def _window(self, series: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is read before a cut, what a decoder begins with, the target, and which of its steps there are."""
        horizon, past = self.horizon, self.past(series[:cut])
        begin = past[-horizon:]
        first = cut
        if self.published_protocol and cut < horizon:
            # As published: target and known steps are aligned as if a horizon of steps had come before.
            first, begin = horizon, series[:horizon]
            begin = np.pad(begin, (0, horizon - len(begin)))
        target = series[first : cut + horizon]
        missing = horizon - len(target)
        return past, begin, np.pad(target, (0, missing)), np.arange(horizon) < len(target)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split != "train":
            x, y = self._scored[split]
            for at in once(len(self.data.names), batch_size, rank=rank, world=world):
                yield Batch({name: value[at] for name, value in x.items()}, {k: v[at] for k, v in y.items()})
            return
        known = self.known("train")
        limit = int(FREQUENCIES[self.frequency].history * self.horizon)
        for step, at in enumerate(epochs(len(known), batch_size, seed=seed, start=start), start):
            rng = np.random.default_rng([seed, step])
            cuts = [int(rng.integers(max(1, len(known[i]) - limit), len(known[i]))) for i in at.tolist()]
            windows = [self._window(known[i], cut) for i, cut in zip(at.tolist(), cuts, strict=True)]
            past, begin, target, there = (_column(np.stack(part))[rank::world] for part in zip(*windows, strict=True))
            yield Batch({"x": past, "start": self._start(begin)}, {"values": target, "weight": there})

    # ------------------------------------------------------------------ training and scores

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        from sequence.series.metrics import smape

        error, weight = smape(output, batch.y["values"]) * batch.y["weight"], batch.y["weight"]
        return error.mean() if self.published_protocol else error.sum() / weight.sum()

    def weight(self, batch: Batch) -> float:
        # As published the mean is over missing steps too, whose error is 0.
        weight = batch.y["weight"]
        return weight.numel() if self.published_protocol else float(weight.sum())

    def example_scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """SMAPE of each series."""
        from sequence.series.metrics import SMAPE

        return SMAPE().of_examples(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from sequence.series.metrics import MASE, SMAPE, owa

        return {"smape": SMAPE(), "mase": MASE(), "owa": owa()}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores on the test of forecasts that need no training."""
        _, y = self._scored["test"]
        forecasts = {"naive2": y["naive2"]}
        for name, season in (("last value", 1), (f"last season ({self.season} steps)", self.season)):
            rows = [seasonal_naive(series, self.horizon, season) for series in self.data.known]
            forecasts[name] = _column(np.stack(rows))
        found = {}
        for name, forecast in forecasts.items():
            metrics = self.metrics()
            for metric in metrics.values():
                metric.update(forecast, y)
            found[name] = {key: float(metric.compute()) for key, metric in metrics.items()}
        return found

    # ------------------------------------------------------------------ words

    def title(self) -> str:
        return f"{self.spec().name}-{self.frequency}"

    def facts(self) -> dict[str, Any]:
        lengths = [len(series) for series in self.known("train")]
        return {
            "protocol": self.protocol,
            "series": len(lengths),
            "steps read": self.length,
            "steps to forecast": self.horizon,
            "season": self.season,
            "known steps of a series": [min(lengths), max(lengths)],
            "series shorter than what is read": sum(length < self.length for length in lengths),
            "validation": "the test" if self.published_protocol else "the last horizon that is known of each series",
        }

    def found(self) -> str:
        return f"m4: {len(self.data.names):,} {self.frequency} series"


def _column(rows: np.ndarray) -> Tensor:
    """Rows (B, L) as one channel (B, L, 1)."""
    return torch.from_numpy(np.asarray(rows, dtype=np.float32)).unsqueeze(-1)
