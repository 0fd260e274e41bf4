"""Known: a matrix whose product with certain values is already at hand."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.ops.cost import Cost


class Known(Matrix):
    """``M = inner``; its product with the very tensor ``values`` is ``product`` and not computed again.

    For matrices that depend on their own values: the gates of ``T2 diag(Phi(T1 v)) T1`` need ``T1 v``, which is then
    most of the product with ``v``. Any other tensor, an equal copy too, is multiplied by ``inner``.
    """

    inner: Matrix
    values: Tensor  # (B, H, L_in, W)
    product: Tensor  # (B, H, L_out, W) = inner @ values

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    def matmul(self, values: Tensor) -> Tensor:
        # Before any check: the shape of what was built lazily is work too.
        return self.product if values is self.values else super().matmul(values)

    def _matmul(self, values: Tensor) -> Tensor:
        return self.inner.matmul(values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.inner.rmatmul(values)

    @property
    def mT(self) -> Matrix:
        return self.inner.mT

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    def diagonal(self) -> Tensor:
        return self.inner.diagonal()

    def to_dense(self) -> Tensor:
        return self.inner.to_dense()

    def cost(self, width: int) -> Cost:
        return self.inner.cost(width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        from matmix.matrices.dense import Dense

        inner = Dense.example(grid, heads, batch, dtype)
        values = torch.randn(batch, heads, math.prod(grid), 3, dtype=dtype)
        return cls(inner, values, inner.matmul(values))
