"""Gate: how much of every hidden unit an activation lets through."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.precision import working_dtype


class Gate(Matrix):
    """``M = diag(f(z) / z)`` for an activation f with f(0) = 0 and ``z = inner v + offset``, so that ``M z = f(z)``.

    It makes a perceptron a matrix that depends on its data, ``W2 f(W1 v) = W2 diag(f(z) / z) W1 v``. For GELU the gate
    is the normal distribution function Phi(z), for ReLU it is 0 or 1, for softshrink ``max(0, 1 - threshold / |z|)``.
    The hidden units are computed when the gates are asked for, so that a layer need not keep them; O(L W) per head
    after that.
    """

    inner: Matrix = axes("B|1 H|1 L L_in")
    values: Tensor = axes("B H|1 L_in 1")
    offset: Tensor | None = axes("B|1 H|1 L|1", default=None)
    mask: Tensor | None = axes("B|1 L", torch.bool, default=None)  # True = a unit that is there; the others are shut
    kind: str = static(default="gelu")  # or "relu", "softshrink"
    threshold: float = static(default=0.0)  # of softshrink

    properties: ClassVar = frozenset({"causal", "diagonal", "symmetric"})

    @property
    def shape(self) -> Shape:
        batch, heads, length = self.inner.shape[:3]
        for tensor in (self.values, self.offset, self.mask):
            if batch == 1 and tensor is not None:
                batch = tensor.shape[0]
        return (batch, max(heads, self.values.shape[1]), length, length)

    def diagonal(self) -> Tensor:
        hidden = self.inner.matmul(self.values).squeeze(-1)
        if self.offset is not None:
            hidden = hidden + self.offset
        exact = hidden.to(working_dtype(hidden))
        if self.kind == "gelu":
            share = 0.5 * (1 + torch.erf(exact * 0.5**0.5))
        elif self.kind == "relu":
            share = (exact > 0).to(exact.dtype)
        elif self.kind == "softshrink":
            size = exact.abs()
            share = torch.where(size > self.threshold, 1 - self.threshold / size.clamp(min=1e-30), 0)
        else:
            raise ValueError(f"Gate: kind must be 'gelu', 'relu' or 'softshrink', got {self.kind!r}")
        share = share.to(hidden.dtype)
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
        batch, heads, length, _ = self.shape
        size = batch * heads * length
        # About ten operations an error function, which is the dearest of them.
        return self.inner.cost(1) + Cost(size * (width + 12), self.dtype.itemsize * size * (1 + 2 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        from matmix.matrices.dense import Dense

        length = math.prod(grid)
        inner = Dense(torch.randn(1, heads, length, length + 1, dtype=dtype))
        values, offset = torch.randn(batch, heads, length + 1, 1, dtype=dtype), torch.randn(1, 1, length, dtype=dtype)
        return cls(inner, values, offset, torch.rand(batch, length) < 0.8)
