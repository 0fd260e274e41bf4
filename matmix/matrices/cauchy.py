"""Cauchy: reciprocals of sums of two sets of points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.function import Function, call
from matmix.ops.sizes import blocks, known, larger

BLOCK = 1 << 19  # entries at a time: they stay in the caches


class Cauchy(Matrix):
    """``M[i, j] = sum_d 1 / (rows[i, d] + columns[j, d])``, exact and row block by row block.

    O(L^2 (R + W)) per head; memory O(L (R + W)), gradients included: a backward makes the entries again. A
    sub-quadratic product would need the fast multipole method in one dimension (O(L log 1/eps), approximate), or
    the fraction of polynomials by FFT in O(L log^2 L), which loses all digits in floating point.
    Hydra, arXiv 2407.09941, section 2.3: Cauchy-like mixers, with ``rows = exp(q) + c`` and ``columns = exp(k) + c``.
    """

    rows: Tensor = axes("B|1 H L_out R")
    columns: Tensor = axes("B|1 H L_in R")  # no sum rows + columns may be zero

    dense_below: ClassVar = 16

    @property
    def shape(self) -> Shape:
        rows, columns = self.rows.shape, self.columns.shape
        return (columns[0] if rows[0] == 1 else rows[0], rows[1], rows[2], columns[2])

    def _matmul(self, values: Tensor) -> Tensor:
        return call(_Product, self.rows, self.columns, values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.mT._matmul(values)

    @property
    def mT(self) -> Cauchy:
        return Cauchy(self.columns, self.rows)

    def diagonal(self) -> Tensor:
        size = min(self.shape[2:])
        return (self.rows[:, :, :size] + self.columns[:, :, :size]).reciprocal().sum(-1)

    def to_dense(self) -> Tensor:
        return (self.rows.unsqueeze(3) + self.columns.unsqueeze(2)).reciprocal().sum(-1)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        order = self.rows.shape[3]
        points = self.rows.numel() + self.columns.numel()
        moved = batch * heads * (rows + columns) * width
        return Cost(batch * heads * rows * columns * (3 * order + 2 * width), self.rows.itemsize * (points + moved))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        rows, columns = 0.5 + torch.rand(2, batch, heads, length, 3, dtype=dtype)
        return cls(rows, columns)


class _Product(Function):
    """The product by blocks of rows, of which nothing is kept for the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        other = columns.movedim(-1, 0).contiguous()
        parts = [rows[:, :, start:stop] for start, stop in _blocks(rows, columns)]
        return torch.cat([reduce(torch.add, _terms(part, other)) @ values for part in parts], 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rows, columns, values = ctx.saved_tensors
        other = columns.movedim(-1, 0).contiguous()
        batch = larger(rows.shape[0], columns.shape[0])
        to_rows, to_columns, to_values = [], list(torch.zeros_like(other)), torch.zeros_like(gradient[:, :, :1])
        for start, stop in _blocks(rows, columns):
            part, given = rows[:, :, start:stop], gradient[:, :, start:stop]
            to_entries = -_fitted(given @ values.mT, batch, rows.shape[1])
            entries, shares = torch.zeros_like(to_entries), []
            for d, term in enumerate(_terms(part, other)):
                entries = entries + term
                share = to_entries * term * term  # 1 / z has the derivative -1 / z^2
                shares.append(share.sum(-1))
                to_columns[d] = to_columns[d] + share.sum(-2)
            to_rows.append(torch.stack(shares, -1))
            to_values = to_values + entries.mT @ given
        found = (torch.cat(to_rows, 2), torch.stack(to_columns, -1), to_values)
        return tuple(_fitted(g, *t.shape[:2]) for g, t in zip(found, (rows, columns, values), strict=True))


def _blocks(rows: Tensor, columns: Tensor) -> list[tuple[int, int]]:
    """First row and end of every block; a single one where a size is open."""
    length, sizes = rows.shape[2], (rows.shape[0], *columns.shape[:3])
    if not known(length, *sizes):
        return [(0, length)]
    return blocks(length, max(1, BLOCK // max(1, max(sizes[:2]) * sizes[2] * sizes[3])))


def _terms(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """The R terms of the entries, for rows ``(B, H, l, R)`` and columns ``(R, B, H, L)``."""
    for row, column in zip(rows.unbind(-1), columns, strict=True):
        yield (row.unsqueeze(-1) + column.unsqueeze(-2)).reciprocal()


def _fitted(gradient: Tensor, batch: int, heads: int) -> Tensor:
    """The sum over samples and over heads that shared one."""
    gradient = gradient.sum(0, keepdim=True) if batch < gradient.shape[0] else gradient
    return gradient.sum(1, keepdim=True) if heads < gradient.shape[1] else gradient
