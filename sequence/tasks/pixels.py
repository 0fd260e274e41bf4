"""What tasks that read grey pictures pixel by pixel have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Split
from matmix.ranges import Positive, Seed
from matmix.sampling import once, order
from sequence.data.pictures import Pictures
from sequence.regimes.settings import RegimeSettings
from sequence.shuffling import ShuffledTest
from sequence.tasks.classes import class_baselines
from sequence.tasks.settings import ClassSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

LEVELS = 256


@dataclasses.dataclass(frozen=True)
class PixelTask(ShuffledTest, RegimeSettings, ClassSettings):
    """A class for each picture, read row by row. A subclass says where the pictures come from, and their `mean` and
    `std`."""

    inputs: Literal["reals", "tokens"] = "reals"
    """A pixel is one real number, or one of 256 tokens."""
    mean: float = 0.0
    """Of reals: pixels from 0 to 1 have it taken off,"""
    std: Positive = 1.0
    """and are divided by that; 0.5 and 0.5 bring them to [-1, 1]."""
    layout: Literal["sequence", "grid"] = "sequence"
    """One long sequence, or rows and columns for mixers of images."""
    black_is_padding: bool = False
    """Of tokens: black pixels are masked, as in Nystromformer's code; two thirds of a Pathfinder picture are black."""
    split: Literal["random", "order"] = "random"
    """Random with `split_seed`, as S4, S5 and Mega divide, or in order, as the Long Range Arena does."""
    split_seed: Seed = 42
    broken: Literal["stop", "skip"] = "stop"
    """What is done about damaged rows and pictures: stop with their file and line, or leave them out and count them."""
    cache: str = ""
    """Folder for prepared data; empty: that of the variable MATMIX_CACHE, else the platform's for caches."""

    metric: ClassVar[str] = "accuracy"
    classes: ClassVar[int]
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.black_is_padding and self.inputs == "reals":
            raise ValueError(f"{name}.black_is_padding=True is for inputs='tokens' only, got inputs='reals'")

    @abstractmethod
    def pictures(self, split: Split) -> tuple[Pictures, np.ndarray]:
        """The pictures that hold a split, and which of them; asked for often, so kept by whoever makes them."""

    def ordered(self) -> bool:
        return self.layout == "sequence"

    @abstractmethod
    def size(self) -> int:
        """Pixels a side."""

    def model(self, mixer: str, seed: int) -> nn.Module:
        side = self.size()
        grid = (side, side) if self.layout == "grid" else (side * side,)
        words, channels = (LEVELS, 0) if self.inputs == "tokens" else (0, 1)
        return self.encoder(
            mixer, seed, vocabulary=words, channels=channels, grid=grid, head="class", outputs=self.classes
        )

    def unshuffled(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        (images, labels, *_), numbers = self.pictures(split)
        if split == "train":
            indices = order(len(numbers), batch_size, seed=seed, start=start, rank=rank, world=world)
        else:
            indices = once(len(numbers), batch_size, rank=rank, world=world)
        for at in indices:
            some = numbers[at.numpy()]
            yield self.batch(torch.from_numpy(images[some]).flatten(1), torch.from_numpy(labels[some]).long())

    def batch(self, pixels: Tensor, labels: Tensor) -> Batch:
        """Pixels (B, L) uint8 as the model takes them: tokens (B, L), or reals (B, L, 1)."""
        if self.inputs == "tokens":
            return Batch(pixels.long(), labels, pixels > 0 if self.black_is_padding else None)
        return Batch((pixels.float().unsqueeze(-1) / 255 - self.mean) / self.std, labels)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.classes, average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        labels = {
            split: found.labels[numbers] for split in ("train", "test") for found, numbers in [self.pictures(split)]
        }
        return class_baselines(labels["train"], labels["test"], self.classes)

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            found, numbers = self.pictures(split)
            shares = np.bincount(found.labels[numbers], minlength=self.classes) / len(numbers)
            facts[split] = {"examples": len(numbers), "share of each class": [round(float(s), 4) for s in shares]}
        digests = dict.fromkeys(self.pictures(split)[0].digest for split in ("train", "test"))
        return {**facts, "length": self.size() ** 2, "checksum": " ".join(digests), **self.regime_facts()}

    def sizes(self) -> str:
        """How many pictures each split has, for people."""
        return ", ".join(f"{len(self.pictures(split)[1]):,} {split}" for split in ("train", "val", "test"))
