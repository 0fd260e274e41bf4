"""Quasiseparable: both triangles of low rank and a free diagonal, the matrix of Hydra."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.legend import axes
from matmix.matrices.semiseparable import Semiseparable, scan_cost
from matmix.matrices.two_triangles import TwoTriangles
from matmix.ops import scan
from matmix.ops.cost import Cost
from matmix.ops.ssd import two_sided_product


class Quasiseparable(TwoTriangles):
    """Two semiseparable triangles, each one token late, around a diagonal (Hydra, 2407.09941, definition 3.1 as coded).

    ::

        i > j:  M[i, j] = C_{i-1} . B_j  exp(a_{j+1} + ... + a_{i-1}) s_j     with the factors of ``lower``
        i < j:  M[i, j] = C'_{i+1} . B'_j exp(a'_{i+1} + ... + a'_{j-1}) s'_j  with the factors of ``upper``
        i = j:  M[i, i] = skip_i

    Row i reads the state that token i - 1 left behind, with the read-out vector of that token, so the diagonal is
    free. Every block strictly on one side of the diagonal has rank N at most. O(L (Q N G/H + Q W + 2 N W)) a head:
    the tables of both triangles are one product, only the flow between chunks runs both ways; nothing is flipped.

    ``lower`` and ``upper`` carry factors in the order of the tokens (as matrices of their own they would be the causal
    recurrences over them); the chunk of ``lower`` holds for both.
    """

    lower: Semiseparable = axes("B|1 H L L")
    upper: Semiseparable = axes("B|1 H L L")
    skip: Tensor = axes("B|1 H L")

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=False)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=True)

    def _apply(self, values: Tensor, transposed: bool) -> Tensor:
        batch, heads = self.shape[:2]
        lower, upper = ((part.outputs, part.inputs, part.log_decay, part.step) for part in (self.lower, self.upper))
        shared = scan.share(values, batch, heads)
        mixed = two_sided_product(shared, lower, upper, self.skip, chunk=self.lower.chunk, transposed=transposed)
        return scan.unshare(mixed, values, batch, heads)

    def to_dense(self) -> Tensor:
        below = F.pad(self.lower.to_dense(), (0, 0, 1, -1))  # row i is row i - 1 of the causal matrix
        above = F.pad(_anticausal(self.upper), (0, 0, -1, 1))
        return below + above + torch.diag_embed(self.skip)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        groups, item = self.lower.outputs.shape[1], self.skip.itemsize
        one = scan_cost(batch, heads, groups, length, self.order, width, self.lower.chunk, item)
        # Both tables go through one product, and the values are read and written once.
        size = scan.chunk_size(length, self.order, width, self.lower.chunk)
        tokens = batch * heads * length
        flops = 2 * one.flops - tokens * (2 * size * width - 2 * width)
        return Cost(flops, 2 * one.bytes - item * tokens * (2 * width - 1))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        lower, upper = (Semiseparable.example(grid, heads, batch, dtype) for _ in range(2))
        return cls(lower, upper, torch.randn(batch, heads, math.prod(grid), dtype=dtype))


def _anticausal(part: Semiseparable) -> Tensor:
    """The dense matrix of the recurrence that runs from the last token to the first."""
    step = None if part.step is None else part.step.flip(2)
    turned = Semiseparable(part.outputs.flip(2), part.inputs.flip(2), part.log_decay.flip(2), step)
    return turned.to_dense().flip(2, 3)
