"""What the tasks have in common that read token ids and say an id at some of them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from matmix.experiments.task import Batch, Split
from matmix.experiments.tensor_task import TensorTask
from matmix.ranges import Count, Seed
from sequence.data.labels import IGNORED
from sequence.encoder import Head
from sequence.tasks.settings import EncoderSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

TIMES = {"test@2x": 2, "test@4x": 4, "test@8x": 8}
"""Further tests: multiples of the length of training rows."""
SPLITS = ("train", "val", "test", *TIMES)
"""Where a split stands here, `stream(data_seed, index)` is its seed."""


@dataclasses.dataclass(frozen=True)
class TokenTask(EncoderSettings, TensorTask):
    """Token ids (B, L) and labels (B, L); a loss and an accuracy over what is labelled.

    A subclass says in `ids` how many ids there are and in `width` how long its training rows are, and gives the splits.
    Where it has none for training it draws new rows at every step, by `draw`.
    """

    eval_examples: Count = 1024
    data_seed: Seed = 0
    """Draws the evaluation sets (and a fixed training set), whatever the seed of the run."""

    metric: ClassVar[str] = "accuracy"

    @property
    @abstractmethod
    def ids(self) -> int:
        """Number of token ids, of inputs and labels."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Tokens of a training row."""

    @property
    def head(self) -> Head:
        """ "language" where the labels are among the inputs, so that only causal mixers are not shown them."""
        return "token"

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """New training rows."""
        raise NotImplementedError(f"{type(self).__name__} has a fixed training set")

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.encoder(mixer, seed, vocabulary=self.ids, grid=(self.width,), head=self.head, outputs=self.ids)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == "train" and "train" not in self._found():
            return self._fresh(batch_size, seed, start, rank, world)
        return super().batches(split, batch_size, seed=seed, start=start, rank=rank, world=world)

    def _fresh(self, batch_size: int, seed: int, start: int, rank: int, world: int) -> Iterator[Batch]:
        step = start
        while True:
            x, y = self.draw(np.random.default_rng([self.data_seed, 1, seed, step]), batch_size)
            yield Batch(x[rank::world], y[rank::world])
            step += 1

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED)

    def weight(self, batch: Batch) -> float:
        return int((batch.y != IGNORED).sum())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.argmax(-1), batch.y

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.ids, average="micro", ignore_index=IGNORED)}
