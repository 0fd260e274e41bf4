"""Classification of whole series: the problems of the UEA and UCR archives.

    matmix train series-classification --data JapaneseVowels --task.folder FOLDER --mixer hydra
    matmix train series-classification --data JapaneseVowels --task.folder FOLDER --task.protocol published

"strict" holds a share of the training cases of each class out, which choose when to stop, and scales everything by the
mean and the deviation of those that are left. "published" is as in the Time Series Library: training and test file are
each scaled by their own, and the test itself chooses when to stop, so its scores are upper bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import SPLITS, Batch, Recipe, Split, Task
from matmix.ranges import OpenShare, Seed
from matmix.sampling import once
from sequence.series.data.ts_files import KNOWN, Cases, load
from sequence.series.data.windows import epochs
from sequence.series.tasks.scripts import Script
from sequence.series.tasks.settings import SeriesSettings
from sequence.tasks.classes import class_baselines

if TYPE_CHECKING:
    from torchmetrics import Metric

SIZES = {"depth": 3, "dim": 128, "hidden": 256}
"""Of the published scripts, whatever the problem."""


@dataclasses.dataclass(frozen=True)
class SeriesClassification(SeriesSettings, Task):
    """Which class does a series of several channels belong to? Shorter ones are padded, and a mask says where."""

    data: str = "JapaneseVowels"
    """A folder with NAME_TRAIN.ts and NAME_TEST.ts of the UEA or UCR archive, or the name of a problem."""
    folder: str = ""
    """Where named problems are; "" is the folder that the variable MATMIX_DATA names, else the current one."""
    val_share: OpenShare = 0.2
    """Share of the training cases of each class that are held out; under protocol="strict"."""
    split_seed: Seed = 0
    """Which ones."""

    metric: ClassVar[str] = "accuracy"
    aliases: ClassVar[dict[str, str]] = {"data": "data", "model": "architecture"}

    # ------------------------------------------------------------------ the data

    @cached_property
    def cases(self) -> dict[str, Cases]:
        """Of each split, in the units of the file."""
        found = load(self.data, self.folder)
        if self.published_protocol:
            return {"train": found["train"], "val": found["test"], "test": found["test"]}
        val = held_out(found["train"].labels, self.val_share, self.split_seed)
        rest = np.setdiff1d(np.arange(len(found["train"].labels)), val)
        return {"train": found["train"].chosen(rest), "val": found["train"].chosen(val), "test": found["test"]}

    @cached_property
    def padded(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Values (n, L, C), scaled, 0 behind the end of a case; mask (n, L); labels (n,)."""
        train = scale_of(self.cases["train"])
        own = {split: scale_of(cases) if self.published_protocol else train for split, cases in self.cases.items()}
        return {split: pad(cases, self.length, *own[split]) for split, cases in self.cases.items()}

    @property
    def length(self) -> int:
        """L, steps of the longest case of both files: a model is built for it, whatever the protocol."""
        known = KNOWN.get(self.data)
        return known.length if known else max(cases.longest for cases in self.cases.values())

    @property
    def channels(self) -> int:
        known = KNOWN.get(self.data)
        return known.channels if known else self.cases["train"].channels

    @property
    def classes(self) -> int:
        known = KNOWN.get(self.data)
        return known.classes if known else len(self.cases["train"].classes)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        values, mask, labels = self.padded[split]
        if split == "train":
            chosen = epochs(len(labels), batch_size, seed=seed, start=start, rank=rank, world=world)
        else:
            chosen = once(len(labels), batch_size, rank=rank, world=world)
        for at in chosen:
            yield Batch({"x": values[at]}, labels[at], mask[at])

    # ------------------------------------------------------------------ training and scores

    def script(self) -> Script:
        known = self.known_options()
        return Script({name: size for name, size in SIZES.items() if name in known}, 16, 1e-3, 100)

    def recipe(self) -> Recipe:
        """RAdam at a constant rate, an evaluation an epoch, no more after ten that were no better."""
        script, known = self.script(), KNOWN.get(self.data)
        count = known.train if known and self.published_protocol else self._train_count(known and known.train)
        each = -(-count // script.batch_size)
        return Recipe(
            steps=(self.epochs or script.epochs) * each, batch_size=script.batch_size, lr=script.lr, optimizer="radam",
            schedule="constant", warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip=4.0, patience=10,
            kept=self.kept, eval_every=each, checkpoint_every=each, log_every=min(50, each),
            eval_batch_size=script.batch_size,
        )  # fmt: skip

    def _train_count(self, known: int | None) -> int:
        """Training cases; of a known problem about as many are held out as the share says."""
        return round(known * (1 - self.val_share)) if known else len(self.cases["train"].labels)

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.series_model(
            mixer, seed, length=self.length, channels=self.channels, goal="classification", classes=self.classes
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.classes, average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Chance, the most frequent class, and the class of the nearest training case, padded and scaled as here."""
        (train, _, known), (test, _, asked) = self.padded["train"], self.padded["test"]
        nearest = torch.cat([torch.cdist(part, train.flatten(1)).argmin(1) for part in test.flatten(1).split(256)])
        return {
            **class_baselines(known.numpy(), asked.numpy(), self.classes),
            "nearest neighbour": {"accuracy": float((known[nearest] == asked).double().mean())},
        }

    # ------------------------------------------------------------------ words

    def title(self) -> str:
        return f"{self.spec().name}-{self.data.rstrip('/').rpartition('/')[2]}"

    def facts(self) -> dict[str, Any]:
        lengths = [len(case) for cases in self.cases.values() for case in cases.values]
        return {
            "protocol": self.protocol,
            "cases": {split: len(self.cases[split].labels) for split in SPLITS},
            "validation": "the test itself" if self.published_protocol else "cases of the training file, held out",
            "channels": self.channels,
            "classes": self.classes,
            "steps": [min(lengths), max(lengths)],
            "missing values, filled": sum(cases.filled for cases in self.cases.values()),
        }

    def found(self) -> str:
        counts = ", ".join(f"{len(self.cases[split].labels):,} {split}" for split in SPLITS)
        return f"{self.data}: {self.channels} channels, {self.classes} classes; cases: {counts}"


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Places of about that share of each class, at least one, and of a class with one case none."""
    source = np.random.default_rng(seed)
    found = []
    for label in np.unique(labels):
        places = source.permutation(np.flatnonzero(labels == label))
        found.append(places[: min(len(places) - 1, max(1, round(share * len(places))))])
    return np.sort(np.concatenate(found))


def scale_of(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel over all steps of all cases; 1 for a channel that does not change."""
    rows = np.concatenate(cases.values)
    std = rows.std(0, ddof=1)  # as pandas has it, and with it the published code
    return rows.mean(0), np.where(std > 0, std, 1)


def pad(cases: Cases, length: int, mean: np.ndarray, std: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled values (n, L, C) with zeros behind each case, mask (n, L), labels (n,)."""
    values = np.zeros((len(cases.labels), length, cases.channels), np.float32)
    mask = np.zeros((len(cases.labels), length), bool)
    for row, case in enumerate(cases.values):
        values[row, : len(case)] = (case - mean) / std
        mask[row, : len(case)] = True
    return torch.from_numpy(values), torch.from_numpy(mask), torch.from_numpy(cases.labels)
