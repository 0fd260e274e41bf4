"""Vandermonde: sums of cosines whose frequencies belong to the row."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.sizes import blocks, joined, known, whole

BLOCK = 64  # rows at a time
OPEN = 32  # columns of a table of cosines where the number of columns is open


class Vandermonde(Matrix):
    """``M[i, j] = sum_d cos(2 pi theta[i, d] j)``: the real part of powers of numbers on the unit circle.

    Exact, row block by row block: O(L^2 (R + W)) per head, memory O(L BLOCK) without gradients (with them, autograd
    keeps the blocks). With ``j = a sqrt(L) + b`` the angles split, and by ``cos(x + y) = cos x cos y - sin x sin y``
    the L^2 R cosines come down to L^1.5 R and a product. A sub-quadratic product would need a non-uniform FFT
    (type 2: O(L log L + L R log 1/eps), approximate) or the polynomial evaluation trees that are exact in
    O(L log^2 L) operations and lose all digits in floating point.

    Hydra's data-dependent class (arXiv 2407.09941, section 2.3) is ``V(q) - V(k).mT`` with angles ``1e-3 q``.
    """

    theta: Tensor = axes("B|1 H L_out R")  # in turns
    columns: int = static(least=0)

    properties: ClassVar = frozenset({"vandermonde"})
    dense_below: ClassVar = 64

    @property
    def order(self) -> int:
        """Every row is a sum of this many geometric series at most: two conjugates a cosine."""
        return 2 * self.theta.shape[3]

    @property
    def shape(self) -> Shape:
        batch, heads, rows, _ = self.theta.shape
        return (batch, heads, rows, self.columns)

    @staticmethod
    def _angle(theta: Tensor, columns: Tensor) -> Tensor:
        """Angles ``(..., L, R, columns)``. Whole turns come off in float64: theta j is large, its rest is not."""
        turns = theta.double().unsqueeze(-1) * columns
        return 2 * math.pi * (turns - turns.round())

    def _block(self, start: int, stop: int) -> Tensor:
        theta = self.theta[:, :, start:stop]
        exact = torch.promote_types(theta.dtype, torch.float32)
        device = theta.device
        # Near the square root: the fewest cosines.
        step = 1 << (self.columns - 1).bit_length() // 2 if known(self.columns) else OPEN
        fine = self._angle(theta, torch.arange(step, device=device)).to(exact)
        coarse = self._angle(theta, step * torch.arange(whole(self.columns, step), device=device)).to(exact)
        # (..., rows, a, 2 R) @ (..., rows, 2 R, b) -> (..., rows, a, b)
        far = torch.cat((coarse.cos(), -coarse.sin()), -2).mT
        near = torch.cat((fine.cos(), fine.sin()), -2)
        return joined(far @ near, 3, self.columns).to(theta.dtype)

    def _matmul(self, values: Tensor) -> Tensor:
        length = self.theta.shape[2]
        return torch.cat([self._block(start, stop) @ values for start, stop in blocks(length, BLOCK)], 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        length = self.theta.shape[2]
        mixed = values.new_zeros(())
        for start, stop in blocks(length, BLOCK):
            mixed = mixed + self._block(start, stop).mT @ values[:, :, start:stop]
        return mixed

    def diagonal(self) -> Tensor:
        size = min(self.shape[2:])
        here = torch.arange(size, device=self.theta.device).view(-1, 1)
        turns = self.theta[:, :, :size].double() * here
        return (2 * math.pi * (turns - turns.round())).cos().sum(-1).to(self.theta.dtype)

    def to_dense(self) -> Tensor:
        columns = torch.arange(self.columns, device=self.theta.device)
        return self._angle(self.theta, columns).cos().sum(-2).to(self.theta.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        order = self.theta.shape[3]
        pairs = batch * heads * rows * columns
        moved = batch * heads * (rows + columns) * width
        return Cost(pairs * (4 * order + 2 * width), self.theta.itemsize * (self.theta.numel() + moved))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        # Angles that every dtype holds exactly: at column j a rounding error counts j times.
        return cls(torch.randint(-128, 128, (batch, heads, length, 3)).to(dtype) / 256, length)
