"""What the tasks of associative recall have in common: pairs and queries, in new rows or fixed sets, of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from matmix.experiments.task import SPLITS
from matmix.ranges import Amount, Count, Whole, numbers
from matmix.sampling import stream
from sequence.data.mqar import check_mqar, fixed, fresh, pairs_asked, plain
from sequence.tasks.tokens import TokenTask


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(TokenTask):
    """Find the value that stood behind each key.

    Whoever knows which values occur, but not whose they are, scores 1/pairs. Queries come early rather than late, and
    in the order of a weighted draw, so the position says a little more about which pair is meant: the baseline "best
    guess by position", the ceiling of a mixer that does not compare tokens. The context is never repeated, so a mixer
    that is not causal sees no answer after the query.
    """

    vocabulary: Count = 32
    """V; keys are 1 to V/2 - 1, values V/2 to V - 1."""
    length: Count = 24
    pairs: Count = 6
    power: Annotated[float, numbers(above=0, most=10)] = 0.01
    """Queries come in slot r with weight power * r^(power - 1): small = early, 1 = uniform."""
    fill: bool = False
    """Random tokens instead of 0 in the free positions."""
    train_examples: Whole = 0
    """Size of a fixed training set, as published; 0 = new examples at every step."""
    mlp_ratio: Amount = 0.0
    embedding_std: Amount = 0.05
    """With 0.2 or more, attention takes several times as many steps, or never solves it."""

    rows: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(plain)
    key_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.check(self.length, self.pairs)

    def check(self, length: int, pairs: int) -> None:
        """Refuse a size that the rows cannot have."""
        check_mqar(self.vocabulary, length, pairs)

    @property
    def ids(self) -> int:
        return self.vocabulary

    @property
    def width(self) -> int:
        return self.length

    def size(self, length: int, pairs: int) -> tuple[Any, ...]:
        """The arguments of the generator for rows of this length, with so many pairs."""
        return self.vocabulary, length, pairs, self.power

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        return fresh(type(self).rows, generator, count, *self.size(self.length, self.pairs), fill=self.fill)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        names = SPLITS if self.train_examples else SPLITS[1:]
        return {name: self.drawn(SPLITS.index(name), self.length, self.pairs) for name in names}

    def drawn(self, index: int, length: int, pairs: int, count: int = 0) -> tuple[Tensor, Tensor]:
        """A fixed set: the training set has index 0. Published code tests on seeds of its own choice; here every index
        has its own for every `data_seed`."""
        count = count or (self.eval_examples if index else self.train_examples)
        seed = stream(self.data_seed, index) % 2**32
        return fixed(type(self).rows, count, *self.size(length, pairs), fill=self.fill, seed=seed)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {
            "chance (any value)": {"accuracy": 1 / self.values},
            "a value of the context": {"accuracy": 1 / self.pairs},
            "best guess by position": {"accuracy": self._by_position()},
        }

    @property
    def values(self) -> int:
        """How many values there are."""
        return self.vocabulary - self.vocabulary // 2

    def _by_position(self) -> float:
        """Test accuracy of naming, at each position, the value of the pair that is asked there most often."""
        seen = fresh(
            type(self).rows, np.random.default_rng(0), 20_000, *self.size(self.length, self.pairs), fill=self.fill
        )
        asked, pair = pairs_asked(*seen, self.pairs, self.key_tokens)
        most = torch.zeros(self.length, self.pairs).index_put_((asked, pair), torch.ones(len(pair)), accumulate=True)
        test = self.drawn(SPLITS.index("test"), self.length, self.pairs)
        asked, pair = pairs_asked(*test, self.pairs, self.key_tokens)
        return (most.argmax(1)[asked] == pair).double().mean().item()

    def facts(self) -> dict[str, Any]:
        train = self.train_examples or "new examples at every step"
        return {"train": train, "val": self.eval_examples, "test": self.eval_examples, "labels": self.pairs}
