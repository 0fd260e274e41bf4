"""Diagonal: one factor a token and head; gates, normalisers, skips."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Diagonal(Matrix):
    """``M = diag(entries)``; O(L W) per head."""

    entries: Tensor = axes("B|1 H L")

    properties: ClassVar = frozenset({"causal", "diagonal", "symmetric"})

    @property
    def shape(self) -> Shape:
        batch, heads, length = self.entries.shape
        return (batch, heads, length, length)

    def _matmul(self, values: Tensor) -> Tensor:
        return self.entries.unsqueeze(-1) * values

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.entries.unsqueeze(-1) * values

    @property
    def mT(self) -> Self:
        return self

    def diagonal(self) -> Tensor:
        return self.entries

    def to_dense(self) -> Tensor:
        return torch.diag_embed(self.entries)

    def cost(self, width: int) -> Cost:
        size = self.entries.numel()
        return Cost(size * width, self.entries.itemsize * size * (1 + 2 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, math.prod(grid), dtype=dtype))
