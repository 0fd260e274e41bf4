"""A small setting of multi-query associative recall (see `sequence.data.mqar`), for the quickstart.

No fixed filter solves it: which earlier token is the answer depends on the tokens, not on the distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split
from matmix.experiments.tensor_task import TensorTask
from matmix.sampling import stream
from sequence.data.mqar import IGNORED, check_mqar, fixed, fresh, pairs_asked, plain
from sequence.tasks.settings import EncoderSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class Recall(EncoderSettings, TensorTask):
    """Find the value that stood behind each key.

    The defaults are a small setting that an attention encoder solves within 320 steps: seconds on one CPU core. So
    small a set of keys can be learnt by heart: with 350 steps a fixed filter between layer norms was at 0.54 on one
    seed of three. The number of steps was chosen with that in view. Like the published setting it has two blocks
    without MLP. That one (Zoology, figure 2) is `vocabulary=8192, length=64, pairs=4, train_examples=100_000` and
    longer.

    Whoever knows which values occur, but not whose they are, scores 1/pairs. Queries come early rather than late, and
    in the order of a weighted draw, so the position says a little more about which pair is meant: the baseline "best
    guess by position", the ceiling of a mixer that does not compare tokens. The context is never repeated, so a mixer
    that is not causal sees no answer after the query.
    """

    vocabulary: int = 32
    """V; keys are 1 to V/2 - 1, values V/2 to V - 1."""
    length: int = 24
    pairs: int = 6
    power: float = 0.01
    """Queries come in slot r with weight power * r^(power - 1): small = early, 1 = uniform."""
    fill: bool = False
    """Random tokens instead of 0 in the free positions."""
    train_examples: int = 0
    """Size of a fixed training set, as published; 0 = new examples at every step."""
    eval_examples: int = 1024
    mlp_ratio: float = 0.0
    embedding_std: float = 0.05
    """With 0.2 or more, attention takes several times as many steps, or never solves it."""
    data_seed: int = 0
    """Draws the evaluation sets (and a fixed training set), whatever the seed of the run."""

    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        check_mqar(self.vocabulary, self.length, self.pairs)

    def recipe(self) -> Recipe:
        return Recipe(steps=320, batch_size=128, lr=2.5e-3, lr_end=0.2, eval_every=80, log_every=10, weight_decay=0.0)

    def model(self, mixer: str, seed: int) -> nn.Module:
        grid = (self.length,)
        return self.encoder(mixer, seed, vocabulary=self.vocabulary, grid=grid, head="token", outputs=self.vocabulary)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        names = ("train", "val", "test") if self.train_examples else ("val", "test")
        return {name: self._fixed(name) for name in names}

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == "train" and not self.train_examples:
            return self._fresh(batch_size, seed, start, rank, world)
        return super().batches(split, batch_size, seed=seed, start=start, rank=rank, world=world)

    def _fresh(self, batch_size: int, seed: int, start: int, rank: int, world: int) -> Iterator[Batch]:
        step = start
        while True:
            generator = np.random.default_rng([self.data_seed, 1, seed, step])
            x, y = fresh(plain, generator, batch_size, *self._settings(), fill=self.fill)
            yield Batch(x[rank::world], y[rank::world])
            step += 1

    def _fixed(self, split: str) -> tuple[Tensor, Tensor]:
        # The published code tests on seeds of its own choice; ours are apart for every data_seed.
        seed = stream(self.data_seed, ("train", "val", "test").index(split)) % 2**32
        count = self.train_examples if split == "train" else self.eval_examples
        return fixed(plain, count, *self._settings(), fill=self.fill, seed=seed)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED)

    def weight(self, batch: Batch) -> float:
        return int((batch.y != IGNORED).sum())

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.vocabulary, average="micro", ignore_index=IGNORED)}

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.flatten(0, 1), batch.y.flatten()

    def baselines(self) -> dict[str, dict[str, float]]:
        values = self.vocabulary - self.vocabulary // 2
        return {
            "chance (any value)": {"accuracy": 1 / values},
            "a value of the context": {"accuracy": 1 / self.pairs},
            "best guess by position": {"accuracy": self._by_position()},
        }

    def _by_position(self) -> float:
        """Test accuracy of naming, at each position, the value of the pair that is asked there most often."""
        seen = fresh(plain, np.random.default_rng(0), 20_000, *self._settings(), fill=self.fill)
        asked, pair = pairs_asked(*seen, self.pairs)
        most = torch.zeros(self.length, self.pairs).index_put_((asked, pair), torch.ones(len(pair)), accumulate=True)
        asked, pair = pairs_asked(*self.data("test"), self.pairs)
        return (most.argmax(1)[asked] == pair).double().mean().item()

    def _settings(self) -> tuple[int, int, int, float]:
        return self.vocabulary, self.length, self.pairs, self.power

    def facts(self) -> dict[str, Any]:
        train = self.train_examples or "new examples at every step"
        return {"train": train, "val": self.eval_examples, "test": self.eval_examples, "labels": self.pairs}
