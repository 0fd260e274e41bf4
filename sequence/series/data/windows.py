"""Splits, scaling and windows of series: one array, and who reads which of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from matmix.sampling import stream

SHARES = (0.7, 0.2)
"""Of the rows, for training and for the test; what lies between is for validation."""
_EVALUATION = 1 << 40
"""Apart from the seeds of training orders, which count epochs."""


class Scaler(NamedTuple):
    """Mean and deviation (C,) of each column; a column that never changes has deviation 1."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Scaler:
        """Of rows (n, C): of all of them, so divided by n."""
        std = rows.std(0)
        return cls(rows.mean(0), np.where(std > 0, std, 1.0))

    def scale(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.std

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Scaled values (..., C) in their own unit."""
        return values * self.std + self.mean


def borders(rows: int, months: int = 0) -> dict[str, tuple[int, int]]:
    """First row and end of each split.

    Args:
        rows: in the file.
        months: rows of a month, where the splits are 12, 4 and 4 months from the beginning; 0 = `SHARES`.
    """
    if months:
        ends = 12 * months, 16 * months, 20 * months
    else:
        train, test = (int(share * rows) for share in SHARES)
        ends = train, rows - test, rows
    return {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows over one array: `length` rows that are read, then `horizon` rows behind them.

    Only the array is in memory; `take` cuts out what a batch needs.
    """

    values: Tensor
    """(n, C)."""
    marks: Tensor
    """(n, K), features of the time."""
    length: int
    horizon: int
    begins: range
    """The first row of each window."""

    def __len__(self) -> int:
        return len(self.begins)

    def take(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values read (B, L, C), values behind them (B, horizon, C), and the marks of both."""
        rows = at.unsqueeze(1) + self.begins.start + torch.arange(self.length + self.horizon)
        values, marks = self.values[rows], self.marks[rows]
        return values[:, : self.length], values[:, self.length :], marks[:, : self.length], marks[:, self.length :]


def forecast_begins(split: tuple[int, int], length: int, horizon: int) -> range:
    """Windows whose targets lie in a split; what they read may reach back before it, if there is something."""
    first, end = split
    return range(max(first, length) - length, end - horizon - length + 1)


def whole_begins(split: tuple[int, int], length: int) -> range:
    """Windows that lie in a split from end to end."""
    first, end = split
    return range(first, end - length + 1)


def epochs(n: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Indices of training batches without end: each epoch a new order, and its last batch may be short.

    As published: of 8,449 windows in batches of 32 the last window of an order is a step of its own.
    """
    each = -(-n // batch_size)
    step, epoch, order = start, -1, torch.empty(0)
    while True:
        if step // each != epoch:
            epoch = step // each
            order = torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, epoch)))
        first = step % each * batch_size
        yield order[first : first + batch_size][rank::world]
        step += 1


def shuffled_once(n: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Indices of one evaluation in an order that the seed draws, and how many windows the whole batch has."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, _EVALUATION)))
    for first in range(0, n, batch_size):
        whole = order[first : first + batch_size]
        if len(whole[rank::world]):
            yield whole[rank::world], len(whole)
