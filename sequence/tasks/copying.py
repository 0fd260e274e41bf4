"""Copying strings (Repeat After Me, arXiv 2402.01032): how much a fixed state can hold.

matmix train copying --mixer "attention(causal=True, rotary=True)"
matmix train copying --task.form suffix_ngram --task.answer 5 --mixer ssd
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from matmix.experiments.task import Recipe
from matmix.ranges import Count, Several, Whole
from matmix.sampling import stream
from sequence.data.copying import Form, check_copying, packed_rows, padded_rows
from sequence.data.labels import IGNORED
from sequence.encoder import Head, Position
from sequence.tasks.tokens import SPLITS, TIMES, TokenTask

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class Copying(TokenTask):
    """Write a string again, or what stands behind an n-gram of it.

    Training rows are new in every step and hold several examples each, as published; loss and scores count the answer
    and its end. The answer is among the inputs (teacher forcing), so mixers must be causal. Tests have one string a
    row: of the training lengths, and of 2, 4 and 8 times the longest. "string_accuracy" is the share of strings without
    an error, as in the paper, where the model reads its own answer: a little lower then.
    """

    form: Form = "copy"
    letters: Several = 26
    shortest: Count = 20
    """Letters of a string in training, at least."""
    longest: Count = 50
    length: Count = 220
    """Tokens of a packed training row; at least one whole example."""
    ngram: Count = 3
    """Letters of the n-gram that is looked up (prefix_ngram, suffix_ngram)."""
    answer: Whole = 0
    """Letters of the answer; 0 = up to the end of the string."""
    eval_examples: Count = 500
    position: Position = "none"

    def __post_init__(self) -> None:
        check_copying(self.form, self.shortest, self.longest, self.ngram, self.answer)
        if self.length < self.tokens(self.longest):
            raise ValueError(
                f"Copying.length must hold one example of longest={self.longest}, {self.tokens(self.longest)} tokens, "
                f"got {self.length}"
            )

    def tokens(self, size: int) -> int:
        """Of an example with a string of this size, at most."""
        more = {"copy": 3, "prefix_ngram": 4 + self.ngram, "suffix_ngram": 3 + self.ngram}[self.form]
        return size + (self.answer or size) + more

    @property
    def ids(self) -> int:
        return self.letters + 4  # begin, separator, end, padding

    @property
    def width(self) -> int:
        return self.length - 1

    @property
    def head(self) -> Head:
        return "language"

    def recipe(self) -> Recipe:
        """The published schedule (warm-up of 100 steps, then linear, clipped) over 2,000 steps."""
        return Recipe(
            steps=2000, batch_size=64, lr=1e-3, warmup=0.05, schedule="power", power=1.0, weight_decay=0.1,
            clip=1.0, eval_every=250, eval_batch_size=32,
        )  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        return {"form": self.form, "letters": self.letters, "ngram": self.ngram, "answer": self.answer}

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        legacy = np.random.RandomState(generator.integers(2**32, size=4))
        return packed_rows(legacy, count, self.length, shortest=self.shortest, longest=self.longest, **self._settings())

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for index, name in enumerate(SPLITS[1:], start=1):
            longest = self.longest * TIMES.get(name, 1)
            shortest = longest if name in TIMES else self.shortest
            found[name] = padded_rows(
                np.random.RandomState(stream(self.data_seed, index) % 2**32), self.eval_examples,
                self.tokens(longest), shortest=shortest, longest=longest, **self._settings(),
            )  # fmt: skip
        return found

    def metrics(self) -> dict[str, Metric]:
        from sequence.metrics import RowAccuracy

        return super().metrics() | {"string_accuracy": RowAccuracy(IGNORED)}

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"chance (a letter)": {"accuracy": 1 / self.letters}}

    def facts(self) -> dict[str, Any]:
        return {"train": "new examples at every step", **dict.fromkeys(SPLITS[1:], self.eval_examples)}
