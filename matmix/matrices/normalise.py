"""Normalise: layer normalisation over channels, its statistics given, as a matrix over tokens."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Normalise(Matrix):
    """``[v; 1]`` becomes ``[(v - mean) rate weight + bias; 1]``, position by position; O(L G W) per head.

    What a layer norm does to its own input: the mean and the rate of each position are data, and with these given
    it is affine. The D channels are heads times the G channels that a head holds side by side on its token axis, so
    that rows are numbered (position, channel of the group); channel ``g * H + h`` of D is number g of head h.
    """

    mean: Tensor = axes("B L")
    rate: Tensor = axes("B L")  # one over the standard deviation
    weight: Tensor = axes("G H")
    bias: Tensor = axes("G H")

    def _check(self, sizes: dict[str, int]) -> None:
        if len(self.mean) != len(self.rate):
            raise ValueError(
                f"Normalise: mean and rate must be of one batch, got {tuple(self.mean.shape)} and "
                f"{tuple(self.rate.shape)}"
            )

    @property
    def shape(self) -> Shape:
        batch, length = self.mean.shape
        group, heads = self.weight.shape
        return (batch, heads, length * group + 1, length * group + 1)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Factor and offset of every row but the last, ``(B, H, L * G)``."""
        weight, bias = (t.mT[None, :, None, :] for t in (self.weight, self.bias))
        mean, rate = (t[:, None, :, None] for t in (self.mean, self.rate))
        factor = (weight * rate).flatten(2)
        return factor, (bias - weight * rate * mean).flatten(2)

    def _matmul(self, values: Tensor) -> Tensor:
        factor, offset = (t.unsqueeze(-1) for t in self._affine())
        last = values[:, :, -1:]
        mixed = factor * values[:, :, :-1] + offset * last
        return torch.cat((mixed, last.expand(*mixed.shape[:2], -1, -1)), 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        factor, offset = (t.unsqueeze(-1) for t in self._affine())
        given = values[:, :, :-1]
        return torch.cat((factor * given, (offset * given).sum(2, keepdim=True) + values[:, :, -1:]), 2)

    def diagonal(self) -> Tensor:
        factor, _ = self._affine()
        return torch.cat((factor, torch.ones_like(factor[:, :, :1])), 2)

    def to_dense(self) -> Tensor:
        entries = torch.diag_embed(self.diagonal())
        entries[:, :, :-1, -1] = self._affine()[1]
        return entries

    def cost(self, width: int) -> Cost:
        batch, heads, rows, _ = self.shape
        size = batch * heads * rows * width
        return Cost(2 * size, 2 * size * self.weight.itemsize)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        mean, rate = torch.randn(2, batch, length, dtype=dtype)
        weight, bias = torch.randn(2, 2, heads, dtype=dtype)
        return cls(mean, rate.abs(), weight, bias)
