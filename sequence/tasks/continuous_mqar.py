"""Associative recall over vectors (see `sequence.data.continuous_mqar`)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Recipe
from matmix.ranges import Amount, Count, Depth, Whole
from matmix.sampling import stream
from sequence.data.continuous_mqar import check_continuous, continuous_rows, laid_out, vectors
from sequence.data.labels import IGNORED
from sequence.encoder import Position
from sequence.tasks.tokens import SPLITS, TIMES, TokenTask


@dataclasses.dataclass(frozen=True)
class ContinuousMQAR(TokenTask):
    """Find the vector that came with a vector: keys and values stand side by side, so that one layer is enough.

    Rows are `passes` times all pairs, each time in another order, then a query for each key. Vectors are fixed and of
    length 1; an answer is scored against the table of values. Tests are at the pairs of training, and at 2, 4 and 8
    times as many. What a mixer adds to its place among others (a short convolution, positions) is of no use here: it
    measures the memory alone.
    """

    vocabulary: Count = 8192
    """Half of it are keys, half values."""
    pairs: Count = 16
    passes: Count = 1
    own_mapping: bool = True
    """Each row pairs its keys and values anew. Without it the permutation between them is always the same, as in the
    published option; both are chosen anew, so that nothing can be learnt from it."""
    vector_dim: Count = 64
    """Width of the vectors."""
    train_examples: Whole = 20_000
    """Size of a fixed training set, as published; 0 = new examples at every step."""
    eval_examples: Count = 1000
    depth: Depth = 1
    mlp_ratio: Amount = 0.0
    position: Position = "none"

    def __post_init__(self) -> None:
        check_continuous(self.vocabulary, max(times * self.pairs for times in (1, *TIMES.values())), self.passes)

    @property
    def ids(self) -> int:
        return self.vocabulary // 2

    @property
    def width(self) -> int:
        return (self.passes + 1) * self.pairs

    def recipe(self) -> Recipe:
        """32 epochs, as published, at a middle one of its four rates."""
        batch = min(256, self.train_examples or 256)
        epoch = max(1, self.train_examples // batch)
        return Recipe(
            steps=32 * epoch, batch_size=batch, lr=3.2e-3, warmup=0.0, weight_decay=0.1, decayed="all",
            betas=(0.9, 0.999), clip=0.0, eval_every=epoch, eval_batch_size=32, checkpoint_every=epoch,
        )  # fmt: skip

    def model(self, mixer: str, seed: int) -> nn.Module:
        table = vectors(self.vocabulary, self.vector_dim, self.data_seed)
        encoder = self.encoder(
            mixer, seed, embedding=partial(_Vectors, table, self.dim), grid=(self.width,), head="token",
            outputs=self.vector_dim,
        )  # fmt: skip
        encoder.head = nn.Sequential(encoder.head, _AgainstTable(table))
        return encoder

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: self._rows(
                self.eval_examples if index else self.train_examples,
                self.pairs * TIMES.get(name, 1),
                stream(self.data_seed, index),
            )
            for index, name in enumerate(SPLITS)
            if index or self.train_examples
        }

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        return self._rows(count, self.pairs, int(generator.integers(2**62)))

    def _rows(self, count: int, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of keys and values (count, L, 2); labels (count, L)."""
        keys, values, labels = continuous_rows(
            count, self.vocabulary, pairs, self.passes, own_mapping=self.own_mapping, seed=seed
        )
        y = torch.full_like(keys, IGNORED)
        y[:, -pairs:] = labels
        return torch.stack([keys, values], -1), y

    def baselines(self) -> dict[str, dict[str, float]]:
        return {
            "chance (any value)": {"accuracy": 1 / self.ids},
            "a value of the context": {"accuracy": 1 / self.pairs},
        }

    def facts(self) -> dict[str, Any]:
        return super().facts() if self.train_examples else {"train": "new examples at every step"}


class _Vectors(nn.Module):
    """Rows of the tables (B, L, 2) to their vectors, mapped to the width of the model."""

    table: Tensor

    def __init__(self, table: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.project = nn.Linear(2 * table.shape[-1], dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(laid_out(x[..., 0], x[..., 1], self.table))


class _AgainstTable(nn.Module):
    """Vectors (B, L, E) to their products with each value (B, L, values)."""

    values: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", table[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.values.T.to(x.dtype)
