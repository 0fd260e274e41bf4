"""Tasks over a csv file of series: its splits, its scaled rows, and batches of windows under both protocols."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import SPLITS, Batch, Recipe, Split, Task
from matmix.ranges import Whole
from matmix.sampling import once, stream
from sequence.series.data.marks import Frequency, features, frequency_of, marks, season_of
from sequence.series.data.sets import SeriesSet, known, load
from sequence.series.data.table import Table
from sequence.series.data.windows import Scaler, Windows, borders, epochs, shuffled_once
from sequence.series.tasks.settings import SeriesSettings
from sequence.shuffling import reordered

if TYPE_CHECKING:
    from torchmetrics import Metric

_TRAIN, _OTHER = 0, 1


class Draw(NamedTuple):
    """Windows of one batch: their numbers, a seed for what is drawn for the whole batch of `whole` windows, of which
    this process has number `rank` and every `world`-th from there."""

    at: Tensor
    seed: int
    whole: int
    rank: int
    world: int
    alike: bool
    """Each batch counts as much as any other, however small."""


@dataclasses.dataclass(frozen=True)
class TableTask(SeriesSettings, Task):
    """Base of the tasks over one table: what is scaled by the training rows, and cut into windows."""

    data: str = "ETTh1"
    """ETTh1, ETTh2, ETTm1, ETTm2, Exchange, Weather, ECL, Traffic, ILI, or a csv file with a column of dates."""
    folder: str = ""
    """Where named data sets are; "" is the folder that the variable MATMIX_DATA names, else the current one."""
    target: str = ""
    """The column that goes behind all others; "" is OT where there is one."""
    lookback: Whole = 0
    """Steps that are read; 0 = as published: 96, of ILI 36, of the model mamba as many as are forecast."""

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {"data": "data", "model": "architecture"}

    # ------------------------------------------------------------------ the data

    @property
    def known(self) -> SeriesSet | None:
        """The published data set that these are."""
        return known(self.data)

    @property
    def data_name(self) -> str:
        return self.known.name if self.known else self.data

    @cached_property
    def table(self) -> Table:
        return load(self.data, self.folder, self.target)

    @cached_property
    def splits(self) -> dict[str, tuple[int, int]]:
        """First row and end of each split; of a known data set they are known without its file."""
        found = self.known
        return borders(found.rows, found.months) if found else borders(len(self.table.values))

    @cached_property
    def scaler(self) -> Scaler:
        """Of the training rows alone."""
        return Scaler.of(self.table.values[slice(*self.splits["train"])])

    @property
    def frequency(self) -> Frequency:
        """Of the features of time. No published script says it, so all published runs have those of hours, whatever
        the data."""
        return "h" if self.published_protocol else frequency_of(self.table.dates)

    @property
    def season(self) -> int:
        """Steps after which it repeats."""
        return self.known.period if self.known else season_of(self.table.dates)

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Scaled values (n, C) and features of the time (n, K)."""
        values = self.scaler.scale(self.table.values).astype(np.float32)
        times = marks(self.table.dates, self.frequency).astype(np.float32)
        return torch.from_numpy(values), torch.from_numpy(times)

    @abstractmethod
    def begins(self, split: Split) -> range:
        """The first row of each window of a split."""

    @abstractmethod
    def behind(self) -> int:
        """Rows behind those of a window that belong to it too."""

    @abstractmethod
    def batch(self, windows: Windows, draw: Draw, split: Split) -> Batch:
        """Inputs by name; targets {"values": (B, ..., C), "weight": broadcasts over them}."""

    def windows(self, split: Split) -> Windows:
        """Those of a split.

        Raises:
            ValueError: where it has none.
        """
        return Windows(*self.rows, self.length, self.behind(), self._counted(split))

    def _counted(self, split: Split) -> range:
        found = self.begins(split)
        if not len(found):
            first, end = self.splits[split]
            raise ValueError(
                f"{type(self).__name__}: the {end - first:,} rows of {split} have no window of {self.length} steps "
                f"that are read and {self.behind()} behind them"
            )
        return found

    @property
    def length(self) -> int:
        """Steps that are read."""
        return self.lookback or (36 if self.data_name == "ILI" else 96)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        windows, share = self.windows(split), {"rank": rank, "world": world}
        if split == "train":
            indices = epochs(len(windows), batch_size, seed=seed, start=start, **share)
            for step, at in enumerate(indices, start):
                whole = min(batch_size, len(windows))
                yield self.batch(
                    windows, Draw(at, stream(stream(seed, step), _TRAIN), whole, rank, world, False), split
                )
            return
        drawn: Iterator[tuple[Tensor, int]]
        if self.published_protocol and split == "val":
            drawn = shuffled_once(len(windows), batch_size, seed=seed, **share)
        else:
            drawn = ((at, 0) for at in once(len(windows), batch_size, **share))
        for index, (at, whole) in enumerate(drawn):
            alike = bool(whole)
            draw = Draw(at, stream(stream(seed, index), _OTHER), whole or batch_size, rank, world, alike)
            yield self.batch(windows, draw, split)

    def in_another_order(self, batch: Batch, draw: torch.Generator) -> Batch:
        """The steps that are read in a drawn order; the features of their time stay where they were."""
        mask = torch.ones(batch.x["x"].shape[:2], dtype=torch.bool)
        keys = torch.rand(mask.shape, generator=draw)
        moved = {name: reordered(batch.x[name], mask, keys) for name in ("x", "observed") if name in batch.x}
        return batch._replace(x={**batch.x, **moved})

    # ------------------------------------------------------------------ training and scores

    def recipe(self) -> Recipe:
        return self.training(len(self._counted("train")))

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """ "justdense": batches of 128, a quarter of the updates, as that study trains."""
        if name == "justdense":
            return self, self.training(len(self._counted("train")), batch_size=128)
        return super().named_recipe(name)

    @property
    def channels(self) -> int:
        return self.known.columns if self.known else len(self.table.columns)

    @property
    def mark_count(self) -> int:
        return len(features(self.frequency))

    def weight(self, batch: Batch) -> float:
        values, weight = batch.y["values"], batch.y["weight"]
        return float(weight.sum()) * (values[:1].numel() / max(1, weight[:1].numel()))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        values, weight = batch.y["values"], batch.y["weight"]
        if weight.shape[1:].numel() == 1:  # one for each window, and within a batch they are alike
            return nn.functional.mse_loss(output, values)
        weight = weight.expand_as(values)
        return ((output - values).square() * weight).sum() / weight.sum()

    def example_scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The squared error of each window, and how many values of it are scored."""
        from sequence.series.metrics import SquaredError

        return SquaredError().of_examples(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from sequence.series.metrics import AbsoluteError, SquaredError

        return {"mse": SquaredError(), "mae": AbsoluteError()}

    # ------------------------------------------------------------------ words

    def title(self) -> str:
        return "-".join((self.spec().name, self.data_name.rpartition("/")[2], str(self.length)))

    def facts(self) -> dict[str, Any]:
        last = max(end for _, end in self.splits.values())
        return {
            "protocol": self.protocol,
            "scores": "over scaled values: mean and deviation of the training rows",
            "rows": len(self.table.values),
            "rows that no split has": len(self.table.values) - last,
            "channels": len(self.table.columns),
            "windows": {split: len(self._counted(split)) for split in SPLITS},
            "features of time": list(features(self.frequency)),
            "constant in training": [
                name for name, at in zip(self.table.columns, range(self.channels), strict=True)
                if np.ptp(self.table.values[slice(*self.splits["train"]), at]) == 0
            ],
            **self.table.facts,
        }  # fmt: skip

    def found(self) -> str:
        counts = ", ".join(f"{len(self._counted(split)):,} {split}" for split in SPLITS)
        return f"{self.data_name}: {len(self.table.values):,} rows of {self.channels}; windows: {counts}"
