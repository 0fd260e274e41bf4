"""The control of order: the same test examples with their tokens in another order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from matmix.experiments.task import Batch, Split, Task

SHUFFLED = "test@shuffled"
"""Name of the test split in tasks that have it: what a model scores there, it does not owe to the order of tokens."""


class ShuffledTest(Task):
    """A task with that split; a subclass says what its other splits hold."""

    def ordered(self) -> bool:
        """Whether its tokens stand in an order that a drawn one can replace."""
        return True

    def tests(self) -> tuple[str, ...]:
        return (SHUFFLED,) if self.ordered() else ()

    @abstractmethod
    def unshuffled(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """`batches` of all other splits."""

    def in_another_order(self, batch: Batch, draw: torch.Generator) -> Batch:
        if not self.ordered():
            return super().in_another_order(batch, draw)
        mask = torch.ones(batch.x.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
        return batch._replace(x=reordered(batch.x, mask, torch.rand(mask.shape, generator=draw)))

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == SHUFFLED:
            return shuffled(self.batches("test", batch_size, rank=rank, world=world), rank=rank)
        return self.unshuffled(split, batch_size, seed=seed, start=start, rank=rank, world=world)


def shuffled(batches: Iterable[Batch], *, rank: int = 0) -> Iterator[Batch]:
    """Batches with the real tokens of each sequence in a drawn order, padding where it was; the same in every call.

    The mask is `(..., L)` and so are the first axes of the inputs; without a mask they are `(B, L, ...)`.
    """
    for index, batch in enumerate(batches):
        generator = np.random.default_rng([index, rank])
        mask = batch.mask if batch.mask is not None else torch.ones(batch.x.shape[:2], dtype=torch.bool)
        keys = torch.from_numpy(generator.random(tuple(mask.shape)))
        yield batch._replace(x=reordered(batch.x, mask, keys))


def reordered(x: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
    """The n-th real token comes from where the n-th smallest key of a real token stands."""
    places = (~mask).to(torch.int8).argsort(dim=-1, stable=True)  # real tokens first, in their order
    drawn = keys.masked_fill(~mask, 2.0).argsort(dim=-1, stable=True)  # real tokens first, in the drawn order
    source = torch.empty_like(places).scatter_(-1, places, drawn)
    source = source.reshape(*source.shape, *[1] * (x.dim() - source.dim()))
    return x.gather(mask.dim() - 1, source.expand_as(x))
