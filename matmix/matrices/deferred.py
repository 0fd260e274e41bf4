"""Deferred: a matrix that is put together when somebody looks at it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.ops.cost import Cost


class Deferred(Matrix):
    """``M = build(*given, *options)``, put together anew whenever it is asked for anything.

    For the inside of a Known: a forward that has the product at hand is spared the views and small tensors of its
    matrix, which cost as much as a product of a few tokens.
    """

    build: Callable[..., Matrix] = static()  # a function of the module, so that equal matrices compare equal
    given: tuple[Tensor, ...]
    options: tuple[Any, ...] = static(default=())

    @property
    def inner(self) -> Matrix:
        """The matrix itself."""
        return self.build(*self.given, *self.options)

    @property
    def shape(self) -> Shape:
        return self.inner.shape

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

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def diagonal(self) -> Tensor:
        return self.inner.diagonal()

    def to_dense(self) -> Tensor:
        return self.inner.to_dense()

    def cost(self, width: int) -> Cost:
        return self.inner.cost(width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(_scaled, (torch.randn(batch, heads, length, length, dtype=dtype),), (0.5,))


def _scaled(entries: Tensor, factor: float) -> Matrix:
    from matmix.matrices.dense import Dense

    return Dense(entries).scale(factor)
