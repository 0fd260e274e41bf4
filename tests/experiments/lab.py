"""A task as a user writes one in a file of their own: inputs by name, several losses, another library's outputs, data
that processes of its own prepare."""

import sys
from dataclasses import dataclass
from multiprocessing import get_context
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn

from matmix import create_mixer, fork_seed
from matmix.experiments import Recipe, TensorTask, register_task


@register_task("lab-parity")
@dataclass(frozen=True)
class Parity(TensorTask):
    """Is the number of ones even, and where is the last one?"""

    length: int = 8
    count: int = 64

    metric: ClassVar[str] = "accuracy"
    aliases: ClassVar[dict[str, str]] = {"long": "length"}

    def recipe(self):
        return Recipe(steps=4, batch_size=8, log_every=2, eval_every=2)

    def splits(self):
        bits = torch.randint(2, (3, self.count, self.length), generator=torch.Generator().manual_seed(0))
        names = ("train", "val", "test")
        with get_context("fork" if sys.platform == "linux" else "spawn").Pool(1) as pool:  # as loaders of data do
            pool.map(abs, [0])
        return {
            name: (
                {"bits": x, "times": torch.arange(self.length).expand_as(x)},
                (x.sum(1) % 2, (x * torch.arange(self.length)).argmax(1)),
            )
            for name, x in zip(names, bits, strict=True)
        }

    def model(self, mixer, seed):
        with fork_seed(seed, "model"):
            return Reader(mixer, self.length)

    def loss(self, output, batch):
        parity, last = batch.y
        return {
            "parity": nn.functional.cross_entropy(output.parity, parity),
            "last": 0.5 * nn.functional.cross_entropy(output.last, last),
        }

    def prediction(self, output, batch):
        return output.parity, batch.y[0]

    def metrics(self):
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(2, average="micro")}


class Reader(nn.Module):
    """Takes its inputs by name and returns an object that torch knows nothing of."""

    def __init__(self, mixer, length):
        super().__init__()
        self.bits, self.times = nn.Embedding(2, 8), nn.Embedding(length, 8)
        self.mixer = create_mixer(mixer, 8, (length,))
        self.parity, self.last = nn.Linear(8, 2), nn.Linear(8, length)

    def forward(self, *, bits, times):
        x = self.mixer(self.bits(bits) + self.times(times)).mean(1)
        return SimpleNamespace(parity=self.parity(x), last=self.last(x))
