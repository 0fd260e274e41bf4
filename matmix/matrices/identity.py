"""Identity: no mixing; the control of every study, and the residual inside published mixers."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.ops.cost import Cost


class Identity(Matrix):
    """``M = I``; free."""

    length: int = static(least=1)
    heads: int = static(least=1, default=1)
    dtype: torch.dtype = static(default=torch.float32)
    device: torch.device = static(default=torch.device("cpu"))

    properties: ClassVar = frozenset({"causal", "diagonal", "symmetric", "orthogonal", "row_stochastic", "toeplitz"})

    @classmethod
    def like(cls, values: Tensor) -> Self:
        """The identity that values ``(B, H, L, W)`` can be multiplied with."""
        return cls(values.shape[2], 1, values.dtype, values.device)

    @property
    def shape(self) -> Shape:
        return (1, self.heads, self.length, self.length)

    def _matmul(self, values: Tensor) -> Tensor:
        return values

    def _rmatmul(self, values: Tensor) -> Tensor:
        return values

    @property
    def mT(self) -> Self:
        return self

    def diagonal(self) -> Tensor:
        return torch.ones(1, self.heads, self.length, dtype=self.dtype, device=self.device)

    def to_dense(self) -> Tensor:
        eye = torch.eye(self.length, dtype=self.dtype, device=self.device)
        return eye.expand(self.shape)

    def cost(self, width: int) -> Cost:
        return Cost(0, 0)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(math.prod(grid), heads, dtype, torch.get_default_device())
