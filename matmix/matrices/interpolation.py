"""Interpolation: every row reads between two neighbours, at its own distance along one axis of the grid."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.ops.cost import Cost
from matmix.ops.precision import working_dtype


class Interpolation(Matrix):
    """``(M v)[p] = v[p + offset[p]]`` along one axis, linear between tokens, zero beyond the grid; O(L W) per head.

    At most two entries a row, ``1 - t`` and ``t`` for a place that lies t after a token; they are differentiable in
    the offsets. A one-tap deformable convolution along an axis.
    """

    offset: Tensor  # (B or 1, H, L), in tokens
    grid: tuple[int, ...] = static()
    axis: int = static(default=0)

    @property
    def shape(self) -> Shape:
        batch, heads, length = self.offset.shape
        return (batch, heads, length, length)

    def _along(self) -> tuple[Tensor, int, int]:
        """The place of every token on the axis (L,), the size of the axis and its stride."""
        size, stride = self.grid[self.axis], math.prod(self.grid[self.axis + 1 :])
        tokens = torch.arange(math.prod(self.grid), device=self.offset.device)
        return tokens // stride % size, size, stride

    def _taps(self) -> list[tuple[Tensor, Tensor]]:
        """Column and entry of both taps of every row, ``(B, H, L, 1)``; beyond the grid the entry is 0."""
        place, size, stride = self._along()
        offset = self.offset.to(working_dtype(self.offset))
        # Whatever is further away than the grid is beyond it, also after rounding to integers.
        start = offset.detach().floor().clamp(-size - 1.0, size + 1.0)
        share = offset - start
        share = torch.where((share >= 0) & (share <= 1), share, 0)
        first = place + start.long()
        tokens = torch.arange(len(place), device=place.device)
        taps = []
        for at, weight in ((first, 1 - share), (first + 1, share)):
            inside = (at >= 0) & (at < size)
            column = torch.where(inside, tokens + (at - place) * stride, 0)
            taps.append((column.unsqueeze(-1), weight.masked_fill(~inside, 0).to(self.offset.dtype).unsqueeze(-1)))
        return taps

    def _matmul(self, values: Tensor) -> Tensor:
        samples, heads, length, width = values.shape
        batch = self.offset.shape[0] if samples == 1 else samples
        # As rows of W numbers side by side, which for values that come from tokens is how they lie in memory:
        # index_select is several times as fast as gather, backward too.
        rows = values.transpose(1, 2).reshape(samples * length * heads, width)
        sample = torch.arange(batch, device=values.device).view(-1, 1, 1) * (samples > 1)
        head = torch.arange(heads, device=values.device)
        mixed = None
        for at, weight in self._taps():
            index = (sample * length + at.squeeze(-1).mT) * heads + head  # (B, L, H)
            read = rows.index_select(0, index.flatten()).view(batch, length, heads, width)
            weight = weight.transpose(1, 2)
            mixed = weight * read if mixed is None else torch.addcmul(mixed, weight, read)
        assert mixed is not None
        return mixed.transpose(1, 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        batch = values.shape[0] if self.offset.shape[0] == 1 else self.offset.shape[0]
        out = None
        for at, weight in self._taps():
            given = weight * values
            start = given.new_zeros(batch, *values.shape[1:]) if out is None else out
            out = start.scatter_add(2, at.expand(batch, values.shape[1], -1, values.shape[3]), given)
        assert out is not None
        return out

    def to_dense(self) -> Tensor:
        place, size, stride = self._along()
        there = place + self.offset.to(working_dtype(self.offset))
        hat = (1 - (there.unsqueeze(-1) - place).abs()).clamp(min=0)
        tokens = torch.arange(len(place), device=place.device)
        line = tokens // (size * stride) * stride + tokens % stride
        return hat.masked_fill(line.unsqueeze(1) != line, 0).to(self.offset.dtype)

    def cost(self, width: int) -> Cost:
        size = self.offset.numel()
        return Cost(size * (6 + 3 * width), self.offset.itemsize * size * (1 + 3 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        # Off the integers, where the derivative has a jump.
        offset = (2 * torch.randn(batch, heads, math.prod(grid))).round() + 0.1 + 0.8 * torch.rand(())
        return cls(offset.to(dtype), tuple(grid), len(grid) - 1)
