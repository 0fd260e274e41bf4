"""Affine: maps with an offset as matrices, by one more coordinate that is always 1."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.algebra import cost_within
from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Affine(Matrix):
    """``[[A, a], [0, unit]]``: ``[v; 1]`` becomes ``[A v + a; unit]``; the cost of A.

    Biases inside of a product of matrices: with ``unit=1`` the constant is there for the next factor, with ``unit=0``
    the result can be added to one that has it.
    """

    inner: Matrix = axes("B|1 H L_out L_in")  # A
    offset: Tensor | None = axes("B|1 H|1 L_out", default=None)  # a; None: 0
    unit: float = static(default=1.0)

    @property
    def shape(self) -> Shape:
        batch, heads, rows, columns = self.inner.shape
        if self.offset is not None:
            batch = self.offset.shape[0] if batch == 1 else batch
            heads = max(heads, self.offset.shape[1])
        return (batch, heads, rows + 1, columns + 1)

    def _matmul(self, values: Tensor) -> Tensor:
        columns = self.inner.shape[3]
        last = values[:, :, columns:]
        mixed = self.inner.matmul(values[:, :, :columns])
        if self.offset is not None:
            mixed = mixed + self.offset.unsqueeze(-1) * last
        return _cat(mixed, self.unit * last)

    def _rmatmul(self, values: Tensor) -> Tensor:
        rows = self.inner.shape[2]
        given, last = values[:, :, :rows], self.unit * values[:, :, rows:]
        mixed = self.inner.rmatmul(given)
        if self.offset is not None:
            last = last + (self.offset.unsqueeze(-1) * given).sum(2, keepdim=True)
        return _cat(mixed, last)

    def to_dense(self) -> Tensor:
        batch, heads, rows, columns = self.shape
        inner = self.inner.to_dense().expand(batch, heads, -1, -1)
        offset = inner.new_zeros(()) if self.offset is None else self.offset.unsqueeze(-1)
        above = torch.cat((inner, offset.expand(batch, heads, rows - 1, 1)), 3)
        below = inner.new_zeros(batch, heads, 1, columns)
        below[..., -1] = self.unit
        return torch.cat((above, below), 2)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, _ = self.shape
        written, offset = batch * heads * rows * width, self.offset
        added = 0 if offset is None else offset.numel() * offset.itemsize
        own = Cost(0 if offset is None else 2 * written, written * self.dtype.itemsize + added)
        return cost_within(self.inner, self, width) + own

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        from matmix.matrices.dense import Dense

        length = math.prod(grid)
        inner = Dense(torch.randn(1, heads, length + 1, length, dtype=dtype))
        return cls(inner, torch.randn(batch, 1, length + 1, dtype=dtype), 0.5)


def _cat(first: Tensor, second: Tensor) -> Tensor:
    """Rows of parts that may bring a batch or heads that the other lacks."""
    size = torch.broadcast_shapes(first.shape[:2], second.shape[:2])
    return torch.cat((first.expand(*size, -1, -1), second.expand(*size, -1, -1)), 2)
