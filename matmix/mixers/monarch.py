"""Monarch: a learned matrix of two block-diagonal factors."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from matmix.matrices.monarch import Monarch as MonarchMatrix
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, split_heads
from matmix.mixers.registry import register
from matmix.ops import interpolate


@register("monarch", matrix=MonarchMatrix, cost="O(L^1.5 D)", source="HazyResearch/m2", paper="2204.00595, equation 1")
class Monarch(Mixer):
    """``y = M x`` with one Monarch matrix a head, the same for all data: between a convolution and a dense matrix.

    An image mixes within every row, then within every column, each by a matrix of its own. A sequence is laid out on
    the grid nearest to a square (of prime length it is one row, and M is dense). Both factors keep the variance of
    independent tokens at the start. M2 (2310.12109) builds a gated convolution of such matrices; this is the matrix
    itself.

    Args:
        heads: number of matrices; the largest divisor of ``dim`` that divides 8 where absent.
    """

    traits = Traits(length="fixed", mask="content")

    def __init__(self, dim: int, grid: Grid | None = None, *, heads: int | None = None) -> None:
        super().__init__(dim, grid)
        self.heads = math.gcd(dim, 8) if heads is None else heads
        if dim % self.heads:
            raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads!r}")
        rows, columns = self._sides()
        self.left = nn.Parameter(torch.randn(self.heads, columns, rows, rows) * rows**-0.5)
        self.right = nn.Parameter(torch.randn(self.heads, rows, columns, columns) * columns**-0.5)

    def _sides(self) -> tuple[int, int]:
        assert self.grid is not None
        return MonarchMatrix.split(self.grid[0]) if len(self.grid) == 1 else (self.grid[0], self.grid[1])

    def project(self, x: Tensor, context: Context) -> Projected:
        values = split_heads(x, self.heads)
        return Projected(MonarchMatrix(self.left.unsqueeze(0), self.right.unsqueeze(0)), values)

    def resize_(self, grid: Grid) -> Self:
        """Interpolate both factors along the sides of the token grid; row sums of M stay what they were."""
        (rows, columns) = self._sides()
        super().resize_(grid)
        new_rows, new_columns = self._sides()

        def resized(blocks: Tensor, along: tuple[int, int], across: tuple[int, int]) -> nn.Parameter:
            moved = interpolate.positions(blocks.detach(), 1, (along[0],), (along[1],))
            return nn.Parameter(interpolate.mixing(moved, (across[0],), (across[1],)), blocks.requires_grad)

        self.left = resized(self.left, (columns, new_columns), (rows, new_rows))
        self.right = resized(self.right, (rows, new_rows), (columns, new_columns))
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"
