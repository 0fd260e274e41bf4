"""Induction heads (H3, arXiv 2212.14052; at greater lengths Mamba, arXiv 2312.00752, section 4.1.2).

matmix train induction --mixer "attention(causal=True, rotary=True)"
matmix train induction --recipe mamba --mixer "s6"
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from matmix.experiments.task import Recipe, Task
from matmix.ranges import Count
from matmix.sampling import stream
from sequence.data.induction import check_induction, induction
from sequence.encoder import Head, Position
from sequence.tasks.tokens import SPLITS, TIMES, TokenTask


@dataclasses.dataclass(frozen=True)
class Induction(TokenTask):
    """Say what stood behind the last token when it came before: one lookup, the smallest that needs two layers.

    Trained on the next token everywhere, as published, so mixers must be causal; tested on the answer alone, at the
    length of the training rows and at 2, 4 and 8 times as many tokens. The published size is the default: rows of 30
    tokens, 5,000 to train on and 500 to test on, without doubles.
    """

    vocabulary: Count = 20
    """Ids, two of them special."""
    length: Count = 30
    """Tokens before the question."""
    answer: Count = 1
    """Tokens to copy."""
    triggers: Count = 1
    """Most places where the question is answered; half of the rows have one."""
    train_examples: Count = 5000
    eval_examples: Count = 500
    dim: Count = 32
    position: Position = "none"

    def __post_init__(self) -> None:
        check_induction(self.vocabulary, self.length, self.answer, self.triggers)

    @property
    def ids(self) -> int:
        return self.vocabulary

    @property
    def width(self) -> int:
        return self.length + self.answer

    @property
    def head(self) -> Head:
        return "language"

    def recipe(self) -> Recipe:
        """The published rate, decay and batch; 40 epochs of the published 400."""
        batch = min(32, self.train_examples)
        epoch = self.train_examples // batch
        return Recipe(
            steps=40 * epoch, batch_size=batch, lr=5e-4, weight_decay=0.1, betas=(0.9, 0.999), eval_every=2 * epoch,
            checkpoint_every=5 * epoch, eval_batch_size=64,
        )  # fmt: skip

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """ "mamba": 16 ids, rows of 256 tokens. The paper tests up to 2^20 tokens and publishes no code."""
        if name == "mamba":
            task = dataclasses.replace(self, vocabulary=16, length=256, train_examples=20_000, dim=64)
            return task, dataclasses.replace(task.recipe(), lr=1e-3, steps=20_000)
        if name != "default":
            raise ValueError(f"Induction has no recipe {name!r}; it has: default, mamba")
        return self, self.recipe()

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: induction(
                self.train_examples if name == "train" else self.eval_examples,
                self.vocabulary,
                self.length * TIMES.get(name, 1),
                self.answer,
                self.triggers,
                seed=stream(self.data_seed, index),
                train=name == "train",
            )
            for index, name in enumerate(SPLITS)
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        """The letters that are neither trigger nor stop are equally frequent."""
        return {"chance": {"accuracy": 1 / (self.vocabulary - 2)}}
