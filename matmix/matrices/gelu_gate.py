"""GeluGate: how much of every hidden unit a GELU lets through."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.ops.cost import Cost
from matmix.ops.precision import working_dtype


class GeluGate(Matrix):
    """``M = diag(Phi(hidden))`` with the normal distribution function: ``M hidden = gelu(hidden)``; O(L W) per head.

    It makes a perceptron a matrix that depends on its data, ``W2 gelu(W1 v) = W2 diag(Phi(W1 v)) W1 v``. The gates are
    evaluated when they are asked for.
    """

    hidden: Tensor  # (B or 1, H, *any) with prod(any) = L units; kept as it comes, flattened when the gates are read
    mask: Tensor | None = None  # (B or 1, L) bool, True = a unit that is there; the others are shut

    properties: ClassVar = frozenset({"causal", "diagonal", "symmetric"})

    @property
    def shape(self) -> Shape:
        batch, heads = self.hidden.shape[:2]
        length = math.prod(self.hidden.shape[2:])
        if batch == 1 and self.mask is not None:
            batch = self.mask.shape[0]
        return (batch, heads, length, length)

    def diagonal(self) -> Tensor:
        exact = self.hidden.flatten(2).to(working_dtype(self.hidden))
        share = (0.5 * (1 + torch.erf(exact * 0.5**0.5))).to(self.hidden.dtype)
        return share if self.mask is None else share.masked_fill(~self.mask.unsqueeze(1), 0)

    def _matmul(self, values: Tensor) -> Tensor:
        return self.diagonal().unsqueeze(-1) * values

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._matmul(values)

    @property
    def mT(self) -> Self:
        return self

    def to_dense(self) -> Tensor:
        return torch.diag_embed(self.diagonal())

    def cost(self, width: int) -> Cost:
        size = self.hidden.numel()
        # About ten operations an error function.
        return Cost(size * (width + 12), self.hidden.itemsize * size * (1 + 2 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(torch.randn(batch, heads, length, dtype=dtype), torch.rand(batch, length) < 0.8)
