"""Quasiseparable with free transitions: any matrix whose blocks off the diagonal have low rank."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.general_semiseparable import GeneralSemiseparable
from matmix.matrices.legend import axes
from matmix.matrices.two_triangles import TwoTriangles
from matmix.ops.cost import Cost


class GeneralQuasiseparable(TwoTriangles):
    """Two general semiseparable triangles, each one token late, around a free diagonal.

    ::

        i > j:  M[i, j] = lower[i - 1, j]
        i < j:  M[i, j] = upper[j - 1, i]
        i = j:  M[i, i] = skip_i

    Every matrix whose blocks strictly on one side of the diagonal have rank N at most is one of these;
    ``Quasiseparable``, the matrix of Hydra, is the case of one decay a head. Unlike there, ``upper`` is the transposed
    triangle. O(L (N^3 + N^2 W)) a head, twice. The last token of either triangle is not read.
    """

    lower: GeneralSemiseparable = axes("B|1 H L L")
    upper: GeneralSemiseparable = axes("B|1 H L L")
    skip: Tensor = axes("B|1 H L")

    def _matmul(self, values: Tensor) -> Tensor:
        below = F.pad(self.lower.matmul(values), (0, 0, 1, -1))
        above = self.upper.rmatmul(F.pad(values, (0, 0, -1, 1)))
        return below + above + self.skip.unsqueeze(-1) * values

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.mT._matmul(values)

    @property
    def mT(self) -> GeneralQuasiseparable:
        return GeneralQuasiseparable(self.upper, self.lower, self.skip)

    def to_dense(self) -> Tensor:
        below, above = (F.pad(part.to_dense(), (0, 0, 1, -1)) for part in (self.lower, self.upper))
        return below + above.mT + torch.diag_embed(self.skip)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        own = Cost(4 * batch * heads * length * width, self.skip.itemsize * self.skip.numel())
        return self.lower.cost(width) + self.upper.cost(width) + own

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        lower, upper = (GeneralSemiseparable.example(grid, heads, batch, dtype) for _ in range(2))
        return cls(lower, upper, torch.randn(batch, heads, math.prod(grid), dtype=dtype))
