"""Permutation: another order of the tokens; ``P^T M P`` is the same mixing along another scan."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Permutation(Matrix):
    """``(P v)[i] = v[index[i]]``, the same for all samples and heads; O(L W)."""

    index: Tensor = axes("L", torch.int64)  # every token once
    dtype: torch.dtype = static(default=torch.float32)

    properties: ClassVar = frozenset({"permutation", "orthogonal", "row_stochastic"})

    def _check(self, sizes: dict[str, int]) -> None:
        if not self.index.is_meta and not torch.equal(
            self.index.sort().values, torch.arange(sizes["L"], device=self.index.device)
        ):
            raise ValueError(f"Permutation: index must have every token of 0 to {sizes['L'] - 1} once")

    @property
    def shape(self) -> Shape:
        length = self.index.shape[0]
        return (1, 1, length, length)

    def _matmul(self, values: Tensor) -> Tensor:
        return values.index_select(2, self.index)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_copy(2, self.index, values)

    @property
    def mT(self) -> Permutation:
        return Permutation(torch.argsort(self.index), self.dtype)

    def diagonal(self) -> Tensor:
        here = torch.arange(self.index.shape[0], device=self.index.device)
        return (self.index == here).to(self.dtype).view(1, 1, -1)

    def to_dense(self) -> Tensor:
        columns = torch.arange(self.index.shape[0], device=self.index.device)
        return (self.index.view(-1, 1) == columns).to(self.dtype)[None, None]

    def cost(self, width: int) -> Cost:
        return Cost(0, self.dtype.itemsize * len(self.index) * 2 * width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randperm(math.prod(grid)), dtype)
