"""Copying from the place that a pointer names (a side task of The Illusion of State, arXiv 2404.08819)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from matmix.experiments.task import Recipe
from matmix.ranges import Count, Several
from matmix.sampling import stream
from sequence.data.copying import pointer_rows
from sequence.data.labels import IGNORED
from sequence.encoder import Position
from sequence.tasks.tokens import SPLITS, TIMES, TokenTask


@dataclasses.dataclass(frozen=True)
class Pointer(TokenTask):
    """Say the token whose place is the number of zeros before the row: a lookup by position, not by content.

    0 0 0 7 1 4 4 2 asks for place 3, counted from 0, and the answer is 4; it is said at the last token. Rows are padded
    behind. Tests are at the size of the training, and at 2, 4 and 8 times as many tokens and zeros.
    """

    vocabulary: Several = 26
    """Tokens are 1 to this."""
    size: Several = 16
    """Tokens of a row, beside the zeros."""
    behind: bool = False
    """The zeros stand behind the tokens: what is asked for is known when all has been read."""
    train_examples: Count = 20_000
    eval_examples: Count = 1000
    position: Position = "none"

    @property
    def ids(self) -> int:
        return self.vocabulary + 2  # 0, and padding

    @property
    def width(self) -> int:
        return 2 * self.size - 1

    def recipe(self) -> Recipe:
        return Recipe(steps=2000, batch_size=64, lr=1e-3, weight_decay=0.01, eval_every=250)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self._rows(index, name) for index, name in enumerate(SPLITS)}

    def _rows(self, index: int, name: str) -> tuple[Tensor, Tensor]:
        count = self.train_examples if name == "train" else self.eval_examples
        size = self.size * TIMES.get(name, 1)
        rows, targets = pointer_rows(
            count, self.vocabulary, size, behind=self.behind, seed=stream(self.data_seed, index)
        )
        x = torch.full((count, 2 * size - 1), self.vocabulary + 1)
        y = torch.full_like(x, IGNORED)
        for number, (row, target) in enumerate(zip(rows, targets, strict=True)):
            x[number, : len(row)] = torch.tensor(row)
            y[number, len(row) - 1] = target
        return x, y

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"chance (any token)": {"accuracy": 1 / self.vocabulary}}
