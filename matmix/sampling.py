"""Who sees which example when. Orders follow from (seed, step) alone, so a run that goes on sees what it would have.

Process ``rank`` of ``world`` gets its share of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def order(n: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Indices of training batches without end: each epoch is a new permutation of `n`, its incomplete tail left out.

    Serves tensors directly and a `torch.utils.data.DataLoader` as its `batch_sampler`.
    """
    per_epoch = n // batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size={batch_size} is larger than the training split of {n} examples")
    step, epoch, permutation = start, -1, torch.empty(0)
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            permutation = torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, epoch)))
        first = step % per_epoch * batch_size
        yield permutation[first : first + batch_size][rank::world]
        step += 1


def once(n: int, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Indices of evaluation batches: every one of `n` exactly once over all ranks."""
    for first in range(0, n, batch_size):
        part = torch.arange(first, min(first + batch_size, n))[rank::world]
        if len(part):
            yield part


def stream(seed: int, index: int) -> int:
    """A 63-bit seed that differs for every pair of numbers (a splitmix64 round)."""
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1
