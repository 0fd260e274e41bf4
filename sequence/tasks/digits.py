"""Handwritten digits (UCI optdigits, as scikit-learn ships it): 1797 images of 8 x 8 pixels, ten classes."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe
from matmix.experiments.tensor_task import TensorTask
from matmix.ranges import Count, Seed
from sequence.encoder import Patches
from sequence.tasks.settings import ClassSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Digits(ClassSettings, TensorTask):
    """Which digit is it, from 64 pixel tokens: a sequence row by row, or an 8 x 8 grid.

    The split is stratified and fixed by `split_seed` (60 / 20 / 20 %), not by the seed of the run. With the position
    embedding a mixer that mixes nothing already sees where each pixel is, so `identity` (a sum of functions of single
    pixels) is the floor to compare with, not chance.
    """

    layout: Literal["sequence", "grid"] = "sequence"
    patch: Literal[1, 2, 4] = 1
    """Pixels a side of a token: 1, 2 or 4 give 64, 16 or 4 tokens."""
    dim: Count = 32
    pool_norm: bool = True
    split_seed: Seed = 0

    metric: ClassVar[str] = "accuracy"

    def recipe(self) -> Recipe:
        return Recipe(steps=420, batch_size=32, lr=6e-3, eval_every=60, log_every=10, eval_batch_size=512)

    def model(self, mixer: str, seed: int) -> nn.Module:
        side = 8 // self.patch
        grid = (side, side) if self.layout == "grid" else (side * side,)
        return self.encoder(
            mixer, seed, embedding=lambda: Patches(1, self.dim, self.patch), grid=grid, head="class", outputs=CLASSES
        )

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return splits(self.split_seed)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(CLASSES, average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        (_, train), (_, test) = self.data("train"), self.data("test")
        return {"most frequent class": {"accuracy": (test == train.mode().values).double().mean().item()}}


@cache
def splits(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (n, 1, 8, 8) scaled to [-1, 1] and labels (n,) by split; each class has its share in each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1  # pixels count 0 to 16
    y = torch.from_numpy(labels).long()
    train, rest = train_test_split(range(len(y)), test_size=0.4, stratify=labels, random_state=seed)
    val, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=seed)
    return {name: (x[part], y[part]) for name, part in (("train", train), ("val", val), ("test", test))}
