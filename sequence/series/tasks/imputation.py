"""Imputation: say what is missing in a window of series, from what is there.

    matmix train imputation --data ETTh1 --model timesnet --task.rate 0.25
    matmix train imputation --data Weather --model itransformer --task.missing channels

"strict" misses the same values in every evaluation of a window, and its windows lie within their splits. "published"
draws them anew for every batch, in the test too, so that its scores depend on the order and size of batches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Split
from matmix.ranges import OpenShare
from matmix.sampling import stream
from sequence.series.data.masks import Missing, missing
from sequence.series.data.windows import Windows, forecast_begins, whole_begins
from sequence.series.naive import fill
from sequence.series.tasks import scripts
from sequence.series.tasks.scripts import Script
from sequence.series.tasks.tables import Draw, TableTask

_BEHIND = 96
"""Steps behind a window that published windows have too, though nothing reads them."""
_MASKS = 7


@dataclasses.dataclass(frozen=True)
class Imputation(TableTask):
    """Fill in what is missing of windows; errors are those of missing values, scaled. What is missing comes as 0."""

    rate: OpenShare = 0.125
    """Share of values that is missing; published are 0.125, 0.25, 0.375 and 0.5."""
    missing: Missing = "points"
    """"points" are drawn one by one, "blocks" are of 12 steps, "channels" are whole columns. Published are points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.published_protocol and self.missing != "points":
            raise ValueError(
                f"Imputation.missing={self.missing!r} is not published; allowed: 'points', or protocol='strict'"
            )

    def script(self) -> Script:
        return scripts.imputation(self.spec().name, self.data_name, self.known_options())

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.series_model(
            mixer, seed, length=self.length, channels=self.channels, goal="imputation", marks=self.mark_count
        )

    def begins(self, split: Split) -> range:
        if self.published_protocol:
            return forecast_begins(self.splits[split], self.length, _BEHIND)
        return whole_begins(self.splits[split], self.length)

    def behind(self) -> int:
        return _BEHIND if self.published_protocol else 0

    def batch(self, windows: Windows, draw: Draw, split: Split) -> Batch:
        values, _, marks, _ = windows.take(draw.at)
        if split == "train" or self.published_protocol:
            whole = missing(self.missing, self.rate, (draw.whole, *values.shape[1:]), draw.seed)
            gone, count = whole[draw.rank :: draw.world][: len(values)], int(whole.sum())
        else:  # by the window, whatever the batch
            shape = (1, *values.shape[1:])
            each = [missing(self.missing, self.rate, shape, stream(_MASKS, index)) for index in draw.at.tolist()]
            gone, count = torch.cat(each), 0
        x = {"x": values.masked_fill(gone, 0), "marks": marks, "observed": ~gone}
        return Batch(x, {"values": values, "weight": gone.float() / (count if draw.alike else 1)})

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return output, batch.y

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores on the test windows of fillings that need no training."""
        scores: dict[str, dict[str, Any]] = {}
        for batch in self.batches("test", 256):
            for name, filled in fill(batch.x["x"], batch.x["observed"]).items():
                for metric in scores.setdefault(name, self.metrics()).values():
                    metric.update(filled, batch.y)
        return {name: {key: float(metric.compute()) for key, metric in found.items()} for name, found in scores.items()}

    def title(self) -> str:
        return f"{super().title()}-{self.missing}-{self.rate:g}"

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": self.missing, "share that is missing": self.rate}
