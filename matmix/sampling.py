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
    per_epoch = _per_epoch(n, batch_size)
    step, epoch, permutation = start, -1, torch.empty(0)
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            permutation = torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, epoch)))
        first = step % per_epoch * batch_size
        yield permutation[first : first + batch_size][rank::world]
        step += 1


def by_length(
    lengths: Tensor, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1, among: int = 64
) -> Iterator[Tensor]:
    """`order` in buckets: each batch holds examples of similar length, so little of it is padding.

    An epoch has the examples that it has in `order`. They come in a random order; of every `among` batches the examples
    are sorted by length, cut into batches, and these come in a random order again. So batches differ between epochs.
    """
    n = len(lengths)
    per_epoch = _per_epoch(n, batch_size)
    step, epoch, batches = start, -1, torch.empty(0)
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            generator = torch.Generator().manual_seed(stream(seed, epoch))
            chosen = torch.randperm(n, generator=generator)[: per_epoch * batch_size]
            parts = [part[lengths[part].argsort(stable=True)] for part in chosen.split(among * batch_size)]
            batches = torch.cat(parts).view(per_epoch, batch_size)
            batches = batches[torch.randperm(per_epoch, generator=generator)]
        yield batches[step % per_epoch][rank::world]
        step += 1


def once_by_length(lengths: Tensor, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """`once` in buckets, the longest first: a batch that memory has no room for is met at once."""
    longest_first = lengths.argsort(descending=True, stable=True)
    return (longest_first[at] for at in once(len(lengths), batch_size, rank=rank, world=world))


def drawn(
    lengths: Tensor, batch_size: int, *, train: bool, buckets: bool, seed: int = 0, start: int = 0, rank: int = 0,
    world: int = 1,
) -> Iterator[Tensor]:  # fmt: skip
    """One of the four above: training batches without end or each example once, in `buckets` of similar length or not.

    `seed` and `start` are those of training.
    """
    if train:
        if buckets:
            return by_length(lengths, batch_size, seed=seed, start=start, rank=rank, world=world)
        return order(len(lengths), batch_size, seed=seed, start=start, rank=rank, world=world)
    if buckets:
        return once_by_length(lengths, batch_size, rank=rank, world=world)
    return once(len(lengths), batch_size, rank=rank, world=world)


def _per_epoch(n: int, batch_size: int) -> int:
    if batch_size > n:
        raise ValueError(f"batch_size={batch_size} is larger than the training split of {n} examples")
    return n // batch_size


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
