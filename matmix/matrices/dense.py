"""Dense: every entry free. The yardstick that the structured classes are measured against."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.given import explain
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.product import product


def dense_cost(shape: Shape, width: int, itemsize: int) -> Cost:
    """Operations and bytes of a dense product: the matrix and the values read once, the result written once."""
    batch, heads, rows, columns = shape
    products = batch * heads
    return Cost(
        flops=2 * products * rows * columns * width,
        bytes=itemsize * products * (rows * columns + (rows + columns) * width),
    )


class Dense(Matrix):
    """``M[i, j] = entries[i, j]``; O(L^2 W) per head."""

    entries: Tensor = axes("B|1 H L_out L_in")

    @property
    def shape(self) -> Shape:
        return self.entries.shape  # type: ignore[return-value]

    def matmul(self, values: Tensor) -> Tensor:
        try:
            shape, size = self.entries.shape, values.shape
            if len(size) == 4 and size[2] == shape[3] and size[1] == shape[1] and size[0] == shape[0]:
                mixed = torch.matmul(self.entries, values)
                return mixed if mixed.dtype is values.dtype else mixed.to(values.dtype)
        except Exception as error:
            explain(self, error, Matrix.matmul, (values,), {})
            raise
        return super().matmul(values)

    def _matmul(self, values: Tensor) -> Tensor:
        return product(self.entries, values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return product(self.entries.mT, values)

    def to_dense(self) -> Tensor:
        return self.entries

    @property
    def mT(self) -> Dense:
        return Dense(self.entries.mT)

    def cost(self, width: int) -> Cost:
        return dense_cost(self.shape, width, self.entries.itemsize)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(torch.randn(batch, heads, length, length, dtype=dtype))
