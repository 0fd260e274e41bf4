"""Anomalies as what a model that knows normal windows cannot give back.

    matmix train series-anomaly --data smd/machine-1-2.npz --task.folder FOLDER --mixer hydra
    matmix train series-anomaly --data smap_msl/msl.npz --task.folder FOLDER --task.protocol published

A step is as anomalous as its squared error, a mean over the channels. The headline is the area under precision and
recall, each step by itself: no threshold enters. "strict": the last fifth of the training rows is not trained on,
chooses when to stop and gives the threshold; each step of the test counts once. "published" is as in the Time Series
Library: the fifth is trained on as well; the threshold comes from train and test together; a test step is counted in
every window that it lies in; and of an anomaly of which one step is found, all steps count as found, which random
scores profit from most: their F1 stands beside.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.ranges import Amount, Count, Whole, numbers
from matmix.sampling import once
from sequence.data.faults import BadData
from sequence.series.data.anomalies import Recording, load
from sequence.series.data.windows import epochs
from sequence.series.tasks.scripts import Script
from sequence.series.tasks.settings import SeriesSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

SIZES = {"depth": 3, "dim": 128, "hidden": 128}
"""Of the published scripts, whatever the data."""
VAL_SHARE = 0.2
FAR = 100.0
"""Deviations from the mean from which on a channel is named."""


class Windows(NamedTuple):
    """The first row of each window, and the row of it from which on its steps count."""

    starts: Tensor
    counted: Tensor


@dataclasses.dataclass(frozen=True)
class SeriesAnomaly(SeriesSettings, Task):
    """Which steps of a recording are anomalous? Trained on a part without labels."""

    data: str = ""
    """A file or folder of recordings (SMD, SMAP, MSL, PSM, UCR), or its name in `folder`; see
    `sequence.series.data.anomalies`."""
    folder: str = ""
    """Where names are; "" is the folder that the variable MATMIX_DATA names, else the current one."""
    series: str = ""
    """One recording of several; "" is all, with one model."""
    length: Count = 100
    """Steps of a window."""
    stride: Whole = 0
    """Steps between windows of the training, and under protocol="published" of the test; 0 = 1, of SMD as published
    100."""
    ratio: Annotated[float, numbers(0, below=100)] = 0.0
    """Percent of the reference values that lie above the threshold of F1; 0 = as published: 1, of SMD 0.5."""
    clip: Amount = 0.0
    """Hold scaled values within so many deviations; 0 = not. A channel that hardly changes in training may lie
    thousands of deviations away in the test: squared errors are mostly its own then, and `facts` and the command line
    name it."""
    vus: bool = False
    """Score the volume under the surface (VUS-PR) too, by aeon."""

    metric: ClassVar[str] = "auprc"
    aliases: ClassVar[dict[str, str]] = {"data": "data", "model": "architecture"}

    # ------------------------------------------------------------------ the data

    @cached_property
    def recordings(self) -> list[Recording]:
        return load(self.data, self.folder, self.series)

    @property
    def is_smd(self) -> bool:
        return self._called("smd") or re.search(r"machine-\d", self.data) is not None

    def _called(self, name: str) -> bool:
        """Whether the file, or the folder where that is what is named, has this name."""
        return name == self.data.rstrip("/").rpartition("/")[2].partition(".")[0].lower()

    @property
    def step(self) -> int:
        return self.stride or (100 if self.is_smd and self.published_protocol else 1)

    @property
    def percent(self) -> float:
        return self.ratio or (0.5 if self.is_smd else 1.0)

    @cached_property
    def rows(self) -> dict[str, tuple[Tensor, Tensor, list[tuple[int, int, int]]]]:
        """Scaled values (n, C) of "train" and "test", labels (n,), and of each recording the first row, the end of its
        training, and the end. Under protocol="published" all recordings are one."""
        parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
        labels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
        borders: dict[str, list[tuple[int, int, int]]] = {"train": [], "test": []}
        begins = {"train": 0, "test": 0}
        for one, (mean, std) in zip(self.recordings, self.scales, strict=True):
            inner = len(one.train) - int(VAL_SHARE * len(one.train))
            for split, values in (("train", one.train), ("test", one.test)):
                begin, end = begins[split], begins[split] + len(values)
                borders[split].append((begin, begin + inner if split == "train" else end, end))
                begins[split] = end
                scaled = (values - mean) / std
                parts[split].append((scaled.clip(-self.clip, self.clip) if self.clip else scaled).astype(np.float32))
                labels[split].append(one.labels if split == "test" else np.zeros(len(values), bool))
        found = {}
        for split in parts:
            end, edges = begins[split], borders[split]
            if self.published_protocol:
                edges = [(0, end - int(VAL_SHARE * end) if split == "train" else end, end)]
            arrays = np.concatenate(parts[split]), np.concatenate(labels[split])
            found[split] = (torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), edges)
        return found

    @cached_property
    def scales(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean and deviation of the channels of each recording."""
        if self.published_protocol:
            return [scale_of(np.concatenate([one.train for one in self.recordings]))] * len(self.recordings)
        return [scale_of(one.train[: len(one.train) - int(VAL_SHARE * len(one.train))]) for one in self.recordings]

    def far(self) -> dict[str, float]:
        """Channels that hardly change in training: how many deviations from their mean the test goes, where these are
        more than `FAR` and ten times as many as in training."""
        found = {}
        for one, (mean, std) in zip(self.recordings, self.scales, strict=True):
            train, test = (np.abs((values - mean) / std).max(0) for values in (one.train, one.test))
            for channel in np.flatnonzero((test > FAR) & (test > 10 * train)):
                found[f"{one.name} channel {channel}"] = float(test[channel])
        return found

    def windows(self, split: Split) -> Windows:
        """Those of "train", "val", "test", or "reference", which the threshold comes from."""
        edges = self.rows["test" if split == "test" else "train"][2]
        found: list[tuple[int, int]] = []
        for first, inner, end in edges:
            if end - first < self.length:
                raise BadData(f"data: a recording has {end - first} steps, less than a window of {self.length}")
            if self.published_protocol:
                begin = inner if split == "val" else first
                whole = range(begin, end - self.length + 1, self.step)
                found += [(start, start) for start in whole] or cover(begin, end, self.length)
            elif split == "train":
                found += [(start, start) for start in range(first, inner - self.length + 1, self.step)]
            else:
                found += cover(first if split == "test" else inner, end, self.length)
        if not found:
            raise BadData(f"data: no recording has a window of {self.length} steps to train on")
        starts, counted = torch.tensor(found).unbind(1)
        return Windows(starts, counted)

    @cached_property
    def channels(self) -> int:
        return int(self.recordings[0].train.shape[1])

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """The test begins with the windows that a threshold comes from."""
        if split == "train":
            windows = self.windows(split)
            for at in epochs(len(windows.starts), batch_size, seed=seed, start=start, rank=rank, world=world):
                yield self._batch(split, windows, at, labelled=False)
            return
        for part in ("reference", "test") if split == "test" else ("val",):
            windows = self.windows(part)
            for at in once(len(windows.starts), batch_size, rank=rank, world=world):
                yield self._batch(part, windows, at, labelled=split == "test")

    def _batch(self, part: str, windows: Windows, at: Tensor, *, labelled: bool) -> Batch:
        values, labels, _ = self.rows["test" if part == "test" else "train"]
        rows = windows.starts[at].unsqueeze(1) + torch.arange(self.length)
        y = {"values": values[rows], "counts": rows >= windows.counted[at].unsqueeze(1)}
        if labelled:
            y |= {"labels": labels[rows], "test": torch.full((len(at),), part == "test"), "place": at}
        return Batch({"x": values[rows]}, y)

    # ------------------------------------------------------------------ training and scores

    def script(self) -> Script:
        known = self.known_options()
        epochs = 10 if self.is_smd or self._called("msl") else 3
        return Script({name: size for name, size in SIZES.items() if name in known}, 128, 1e-4, epochs)

    def recipe(self) -> Recipe:
        """The script's; without data, to show what it looks like, of a single step an epoch."""
        return self.training(len(self.windows("train").starts) if self.data else 1)

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.series_model(mixer, seed, length=self.length, channels=self.channels, goal="anomaly")

    def weight(self, batch: Batch) -> float:
        return int(batch.y["counts"].sum())

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        counts = batch.y["counts"]
        return (energies(output, batch) * counts).sum() / counts.sum()

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Nothing where there are no labels: validation is scored by its loss."""
        return (energies(output, batch), batch.y) if "labels" in batch.y else None

    def metrics(self) -> dict[str, Metric]:
        from sequence.series import anomaly_scores as scores

        found: dict[str, Metric] = {
            "auprc": scores.AveragePrecision(),
            "auroc": scores.AUROC(),
            "f1": scores.F1(self.percent, with_test=self.published_protocol),
        }
        if self.published_protocol:
            found["f1_adjusted"] = scores.F1(self.percent, with_test=True, adjusted=True)
        if self.vus:
            found["vus_pr"] = scores.VUSPR(self.length)
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """Random scores, and the squared distance from the mean of the training rows, which a model has that gives
        back zeros."""
        source = torch.Generator().manual_seed(0)
        found = {}
        for name in ("random", "distance from the mean"):
            metrics = self.metrics()
            for batch in self.batches("test", 4096):
                x = batch.y["values"]
                score = torch.rand(x.shape[:2], generator=source) if name == "random" else x.square().mean(-1)
                for metric in metrics.values():
                    metric.update(score, batch.y)
            found[name] = {key: float(metric.compute()) for key, metric in metrics.items()}
        return found

    # ------------------------------------------------------------------ words

    def title(self) -> str:
        return "-".join(filter(None, (self.spec().name, self.data.rstrip("/").rpartition("/")[2], self.series)))

    def facts(self) -> dict[str, Any]:
        far, share = self.far(), float(torch.cat([self.rows["test"][1]]).double().mean())
        return {
            "protocol": self.protocol,
            "recordings": len(self.recordings),
            "channels": self.channels,
            "rows": {split: len(values) for split, (values, _, _) in self.rows.items()},
            "windows": {split: len(self.windows(split).starts) for split in ("train", "val", "test")},
            "anomalous share of the test": round(share, 4),
            "threshold from": "train and test" if self.published_protocol else "validation",
            "missing values, filled": sum(one.filled for one in self.recordings),
            "hardly change in training": {name: f"{at:.0f} deviations away in the test" for name, at in far.items()},
        }

    def found(self) -> str:
        rows = ", ".join(f"{len(values):,} rows {split}" for split, (values, _, _) in self.rows.items())
        said, far = f"{self.data}: {len(self.recordings)} recordings of {self.channels} channels, {rows}", self.far()
        if far and not self.clip:
            most = max(far, key=lambda name: far[name])
            said += (
                f"; channels that hardly change in training: {len(far)}, up to {far[most]:,.0f} deviations away in the "
                f"test ({most}), so squared errors are mostly theirs; --task.clip 10 holds them"
            )
        return said


def energies(output: Tensor, batch: Batch) -> Tensor:
    """Squared error (B, L), a mean over the channels."""
    return (output - batch.y["values"]).square().mean(-1)


def scale_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel; 1 for one that does not change."""
    std = rows.std(0)
    return rows.mean(0), np.where(std > 1e-10, std, 1)


def cover(first: int, end: int, length: int) -> list[tuple[int, int]]:
    """Windows in which each row from `first` to `end` counts once: the last one reaches back over the one before, and a
    single short one before `first`."""
    starts = [*range(first, end - length + 1, length)]
    if not starts or starts[-1] + length < end:
        starts.append(end - length)
    ends = [first, *(start + length for start in starts)]
    return [(start, before) for start, before in zip(starts, ends[:-1], strict=True)]
