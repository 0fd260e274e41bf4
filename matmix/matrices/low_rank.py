"""LowRank: two thin factors; linear attention, Nystrom landmarks, Hydra's low-rank class."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.given import explain
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.product import product


class LowRank(Matrix):
    """``M = left right^T``, so ``M[i, j] = left[i] . right[j]``; O((L_out + L_in) R W) per head.

    A rank of 0 is a zero matrix.
    """

    left: Tensor = axes("B|1 H L_out R")
    right: Tensor = axes("B|1 H L_in R")

    properties: ClassVar = frozenset({"low_rank"})

    @property
    def shape(self) -> Shape:
        left, right = self.left.shape, self.right.shape
        return (right[0] if left[0] == 1 else left[0], left[1], left[2], right[2])

    @property
    def order(self) -> int:
        """R, an upper bound of the rank of every head."""
        return self.left.shape[3]

    def matmul(self, values: Tensor) -> Tensor:
        try:
            right, size = self.right, values.shape
            if len(size) == 4 and size[2] == (shape := right.shape)[2] and size[1] == shape[1] and size[0] == shape[0]:
                mixed = self.left @ (right.mT @ values)
                return mixed if mixed.dtype is values.dtype else mixed.to(values.dtype)
        except Exception as error:
            explain(self, error, Matrix.matmul, (values,), {})
            raise
        return super().matmul(values)

    def _matmul(self, values: Tensor) -> Tensor:
        return product(self.left, product(self.right.mT, values))

    def _rmatmul(self, values: Tensor) -> Tensor:
        return product(self.right, product(self.left.mT, values))

    @property
    def mT(self) -> LowRank:
        return LowRank(self.right, self.left)

    def diagonal(self) -> Tensor:
        size = min(self.left.shape[2], self.right.shape[2])
        return (self.left[:, :, :size] * self.right[:, :, :size]).sum(-1)

    def to_dense(self) -> Tensor:
        return torch.einsum("bhir,bhjr->bhij", self.left, self.right)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        rank = self.order
        factors = self.left.numel() + self.right.numel()
        moved = batch * heads * (rows + columns + 2 * rank) * width
        return Cost(2 * batch * heads * (rows + columns) * rank * width, self.left.itemsize * (factors + moved))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(torch.randn(batch, heads, length, 3, dtype=dtype), torch.randn(batch, heads, length, 3, dtype=dtype))
