"""Cauchy: reciprocals of sums of two sets of points."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.ops.cost import Cost

BLOCK = 64  # rows at a time


class Cauchy(Matrix):
    """``M[i, j] = sum_d 1 / (rows[i, d] + columns[j, d])``, exact and row block by row block.

    O(L^2 (R + W)) per head; memory O(L BLOCK) without gradients (with them, autograd keeps the blocks). A
    sub-quadratic product would need the fast multipole method in one dimension (O(L log 1/eps), approximate), or
    the fraction of polynomials by FFT in O(L log^2 L), which loses all digits in floating point.
    Hydra, arXiv 2407.09941, section 2.3: Cauchy-like mixers, with ``rows = exp(q) + c`` and ``columns = exp(k) + c``.
    """

    rows: Tensor  # (B or 1, H, L_out, R)
    columns: Tensor  # (B or 1, H, L_in, R), no sum rows + columns may be zero

    dense_below: ClassVar = 16

    @property
    def shape(self) -> Shape:
        rows, columns = self.rows.shape, self.columns.shape
        return (columns[0] if rows[0] == 1 else rows[0], rows[1], rows[2], columns[2])

    def _block(self, start: int, stop: int) -> Tensor:
        """Some rows of M, term by term: R passes over L x BLOCK entries rather than one over R times as many."""
        rows, columns = self.rows[:, :, start:stop], self.columns
        entries = (rows[..., 0].unsqueeze(-1) + columns[..., 0].unsqueeze(-2)).reciprocal()
        for d in range(1, rows.shape[3]):
            entries = entries + (rows[..., d].unsqueeze(-1) + columns[..., d].unsqueeze(-2)).reciprocal()
        return entries

    def _matmul(self, values: Tensor) -> Tensor:
        length = self.rows.shape[2]
        blocks = [self._block(start, min(start + BLOCK, length)) @ values for start in range(0, length, BLOCK)]
        return torch.cat(blocks, 2)

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
