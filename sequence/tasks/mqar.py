"""Multi-query associative recall as published (Zoology, arXiv 2312.04927; its newer suite: Based, arXiv 2402.18668).

    matmix train mqar --recipe figure2 --task.length 128 --task.pairs 8 --mixer "attention(head_dim=64)"
    matmix train mqar --recipe mixed --mixer "ssd(d_state=16)"
    matmix train mqar-forgetting --recipe mixed --mixer delta_rule

Two suites. "figure2" trains and tests at one size a run: (length, pairs) = (64, 4), (128, 8), (256, 16), (512, 64), at
four learning rates. "mixed" trains on five sizes at once and tests at seven, up to four times the longest length. In
both the best rate is reported for each mixer and width; `RATES` has them. A rate is chosen on validation here, which
has rows of its own; the published code chooses on the test.

What differs from the published code: a positional embedding for every mixer by default in "figure2" (there attention
alone has one), a short convolution in front of every mixer in "mixed" (there a gated long one in front of most). Both
are settings: `position`, `conv`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor

from matmix.experiments.task import SPLITS, Batch, Recipe, Split, Task
from matmix.ranges import Count, Whole
from matmix.sampling import once, order, stream
from sequence.data.labels import IGNORED
from sequence.data.mqar import check_compositional, check_forgetting, compositional, forgetting, pairs_asked
from sequence.tasks.associative import AssociativeRecall

FIGURE2 = ((64, 4), (128, 8), (256, 16), (512, 64))
"""Sizes (length, pairs) of figure 2, a run each."""
RATES = {
    "figure2": tuple(10 ** (-4 + 2 * i / 3) for i in range(4)),
    "mixed": tuple(10 ** (-3 + i / 2) for i in range(4)),
}
"""Learning rates that are tried: 1e-4 to 1e-2, and 1e-3 to 10^-1.5."""
Part = tuple[Count, Count, Count]
ODD_PARTS: tuple[Part, ...] = ((128, 9, 20_000), (256, 16, 20_000), (256, 25, 20_000), (256, 36, 20_000))
ODD_TESTS = ((64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256))
"""Sizes of the suites of the variants: numbers of pairs that are squares."""


@dataclasses.dataclass(frozen=True)
class MQAR(AssociativeRecall):
    """Find the value that stood behind each key, at the published sizes.

    With `parts` each batch is of one size, `length` and `pairs` first, as published; validation and test hold every
    size of the training, and each of `tests_at` is a test of its own, "test@512x128" with 128 pairs in 512 tokens.
    """

    vocabulary: Count = 8192
    length: Count = 64
    pairs: Count = 4
    train_examples: Whole = 100_000
    parts: tuple[Part, ...] = ()
    """Further sizes to train on: length, pairs, examples."""
    tests_at: tuple[tuple[Count, Count], ...] = ()
    """Further sizes to test at: length, pairs."""
    eval_examples: Count = 3000
    """Of each size."""

    suites: ClassVar[tuple[str, ...]] = ("default", "figure2", "mixed")
    mixed: ClassVar[tuple[Part, ...]] = ((128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000))
    mixed_tests: ClassVar[tuple[tuple[int, int], ...]] = (
        (64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for length, pairs, *_ in (*self.parts, *self.tests_at):
            self.check(length, pairs)
        if self.parts and not self.train_examples:
            raise ValueError(f"{type(self).__name__}: new rows at every step are of one size: parts={self.parts}")

    def recipe(self) -> Recipe:
        """The published one at a middle rate, without its stop at 99 %: AdamW, half a cosine, no warm-up."""
        if self.parts:
            return self._recipe(32, 256, RATES["mixed"][1])
        return self._recipe(64, {512: 128, 256: 256}.get(self.length, 512), RATES["figure2"][2])

    def _recipe(self, epochs: int, batch: int, lr: float) -> Recipe:
        sizes = [self.train_examples or 100_000, *(count for *_, count in self.parts)]
        batch = min(batch, *sizes)
        epoch = sum(size // batch for size in sizes)
        return Recipe(
            steps=epochs * epoch, batch_size=batch, lr=lr, warmup=0.0, weight_decay=0.1, decayed="all",
            betas=(0.9, 0.999), clip=0.0, eval_every=epoch, eval_batch_size=max(32, batch // 8), checkpoint_every=epoch,
        )  # fmt: skip

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """The suites: "figure2" at the size that the task has, "mixed" at its own sizes."""
        changes: dict[str, dict[str, Any]] = {
            "default": {},
            "figure2": {"train_examples": 100_000, "parts": (), "fill": False},
            "mixed": {
                "length": 64, "pairs": 4, "train_examples": 100_000, "parts": self.mixed, "tests_at": self.mixed_tests,
                "eval_examples": 1000, "fill": True, "position": "none", "conv": 4,
            },
        }  # fmt: skip
        if name not in self.suites:
            raise ValueError(f"{type(self).__name__} has no recipe {name!r}; it has: {', '.join(self.suites)}")
        task = dataclasses.replace(self, **changes[name])
        return task, task.recipe()

    # ------------------------------------------------------------------ rows of several sizes

    @property
    def width(self) -> int:
        """Of the longest row in training: learned positions reach so far."""
        return max(self.length, *(length for length, *_ in self.parts), 0)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        further = {
            f"test@{length}x{pairs}": self.drawn(1000 + index, length, pairs)
            for index, (length, pairs) in enumerate(self.tests_at)
        }
        return super().splits() | further

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if not self.parts or split not in SPLITS:
            return super().batches(split, batch_size, seed=seed, start=start, rank=rank, world=world)
        sets = [super().data(split)]
        for index, (length, pairs, count) in enumerate(self.parts):
            of_split = 10 * (1 + index) + SPLITS.index(split)  # a seed of its own
            sets.append(self.drawn(of_split, length, pairs, count if split == "train" else 0))
        if split == "train":
            return _size_by_size(sets, batch_size, seed=seed, start=start, rank=rank, world=world)
        return (Batch(x[at], y[at]) for x, y in sets for at in once(len(x), batch_size, rank=rank, world=world))

    def facts(self) -> dict[str, Any]:
        if not self.parts:
            return super().facts()
        sizes = [(self.length, self.pairs, self.train_examples), *self.parts]
        return {
            "train": {f"length {length}, {pairs} pairs": count for length, pairs, count in sizes},
            "val and test": f"{self.eval_examples} of each of these sizes, and as many of each further test",
        }


def _size_by_size(
    sets: list[tuple[Tensor, Tensor]], batch_size: int, *, seed: int, start: int, rank: int, world: int
) -> Iterator[Batch]:
    """Epochs in which the sizes come one after the other, as published, each in an order that is drawn anew."""
    counts = [len(x) // batch_size for x, _ in sets]
    epoch, step = divmod(start, sum(counts))
    while True:
        for index, ((x, y), count) in enumerate(zip(sets, counts, strict=True)):
            if step < count:
                share = {"rank": rank, "world": world}
                chosen = order(len(x), batch_size, seed=stream(seed, index), start=epoch * count + step, **share)
                yield from (Batch(x[at], y[at]) for at in islice(chosen, count - step))
            step = max(0, step - count)
        epoch += 1


@dataclasses.dataclass(frozen=True)
class CompositionalMQAR(MQAR):
    """Recall with keys of two tokens, of which neither alone says which value is meant: `pairs` is a square.

    First tokens of keys are 1 to V/3 - 1, second ones up to 2V/3 - 1, values the rest. A query is both tokens of a key;
    a model that looks for the second one alone finds sqrt(pairs) candidates.
    """

    vocabulary: Count = 8192
    rows: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(compositional)
    key_tokens: ClassVar[int] = 2
    suites: ClassVar[tuple[str, ...]] = ("default", "mixed")
    mixed: ClassVar[tuple[Part, ...]] = ODD_PARTS
    mixed_tests: ClassVar[tuple[tuple[int, int], ...]] = ODD_TESTS

    def check(self, length: int, pairs: int) -> None:
        check_compositional(self.vocabulary, length, pairs)

    @property
    def values(self) -> int:
        return self.vocabulary - 2 * (self.vocabulary // 3)

    def baselines(self) -> dict[str, dict[str, float]]:
        half = {"a value of the second token of the key": {"accuracy": self.pairs**-0.5}}
        return super().baselines() | half


@dataclasses.dataclass(frozen=True)
class ForgettingMQAR(MQAR):
    """Recall where some keys come again with another value, and the newest one counts.

    A state that only adds up what it was told holds both values of such a key.
    """

    updates: Count = 4
    """Keys that come again, at most `pairs`."""
    rows: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(forgetting)
    suites: ClassVar[tuple[str, ...]] = ("default", "mixed")
    mixed: ClassVar[tuple[Part, ...]] = ODD_PARTS
    mixed_tests: ClassVar[tuple[tuple[int, int], ...]] = ODD_TESTS

    def check(self, length: int, pairs: int) -> None:
        check_forgetting(self.vocabulary, length, pairs, self.updates)

    def size(self, length: int, pairs: int) -> tuple[Any, ...]:
        return (*super().size(length, pairs), self.updates)

    def baselines(self) -> dict[str, dict[str, float]]:
        x, y = self.drawn(SPLITS.index("test"), self.length, self.pairs)
        row, position = (y != IGNORED).nonzero(as_tuple=True)
        _, pair = pairs_asked(x, y, self.pairs)
        first = (x[row, 2 * pair + 1] == y[row, position]).double().mean().item()
        return super().baselines() | {"the first value of the key": {"accuracy": first}}
