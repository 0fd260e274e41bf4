"""Interpolation: every row reads between two neighbours, at its own distance along one axis of the grid."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.precision import working_dtype
from matmix.ops.sizes import modulo, surely


class Interpolation(Matrix):
    """``(M v)[p] = v[p + offset[p]]`` along one axis, linear between tokens, zero beyond the grid; O(L W) per head.

    At most two entries a row, ``1 - t`` and ``t`` for a place that lies t after a token; they are differentiable in
    the offsets. A one-tap deformable convolution along an axis.
    """

    offset: Tensor = axes("B|1 H L")  # in tokens
    grid: tuple[int, ...] = static(least=1)
    axis: int = static(least=0, default=0)

    def _check(self, sizes: dict[str, int]) -> None:
        if math.prod(self.grid) != sizes["L"] or not 0 <= self.axis < len(self.grid):
            raise ValueError(
                f"Interpolation: grid must have {sizes['L']} places and an axis {self.axis}, got {self.grid}"
            )

    @property
    def shape(self) -> Shape:
        batch, heads, length = self.offset.shape
        return (batch, heads, length, length)

    def _along(self) -> tuple[Tensor, int, int]:
        """The place of every token on the axis (L,), the size of the axis and its stride."""
        size, stride = self.grid[self.axis], math.prod(self.grid[self.axis + 1 :])
        tokens = torch.arange(math.prod(self.grid), device=self.offset.device)
        return modulo(tokens // stride, size), size, stride

    def _reading(self) -> tuple[Tensor, Tensor]:
        """How far before its two neighbours a row reads, in whole tokens, and the share of the second: ``(B, L, H)``.

        Whatever lies further beyond the grid than one token is as good as one token beyond it. An offset that is not a
        number gives rows that are not numbers.
        """
        place, size, _ = self._along()
        offset = self.offset.to(working_dtype(self.offset)).mT
        place = place.to(offset.dtype).unsqueeze(-1)
        offset = offset.clamp(-1 - place, size - place)
        start = offset.detach().nan_to_num(0).floor()
        return start.int(), offset - start

    def _widened(self) -> tuple[int, ...]:
        """The grid with one more token before the axis and two behind it, for reading zeros beyond its ends."""
        return tuple(n + 3 if axis == self.axis else n for axis, n in enumerate(self.grid))

    def _rows(self, start: Tensor, batch: int, heads: int) -> tuple[Tensor, int]:
        """Where rows start to read in ``batch`` widened grids of ``heads``, flattened, and how far on they end."""
        _, _, stride = self._along()
        grid, step = self._widened(), stride * heads
        count = batch * math.prod(grid) * heads
        kind = torch.int32 if surely(count < 2**31) else torch.int64  # half of the traffic
        every = torch.arange(count, dtype=kind, device=start.device).view(batch, *grid, heads)
        own = every.narrow(1 + self.axis, 1, self.grid[self.axis]).reshape(batch, math.prod(self.grid), heads)
        return torch.add(own, start, alpha=step), step

    def _matmul(self, values: Tensor) -> Tensor:
        start, share = self._reading()
        samples, heads, _, width = values.shape
        # As rows of W numbers side by side, which for values that come from tokens is how they lie in memory:
        # index_select is several times as fast as gather, backward too.
        margin = (0, 0) * (1 + len(self.grid) - self.axis) + (1, 2)
        padded = F.pad(values.transpose(1, 2).unflatten(1, self.grid), margin)
        # Numbers rather than rows of one number: four times as fast.
        rows = padded.flatten() if width == 1 else padded.reshape(math.prod(padded.shape[:-1]), width)
        index, step = self._rows(start, samples, heads)
        flat, shape = index.flatten(), (*index.shape, width)
        first, second = rows.index_select(0, flat).view(shape), rows.index_select(0, flat + step).view(shape)
        return torch.lerp(first, second, share.to(values.dtype).unsqueeze(-1)).transpose(1, 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        start, share = self._reading()
        share = share.to(values.dtype).unsqueeze(-1)
        given = values.transpose(1, 2)
        given = given.expand(max(given.shape[0], start.shape[0]), -1, -1, -1)
        batch, length, heads, width = given.shape
        index, step = self._rows(start, batch, heads)
        grid = self._widened()
        rows = given.new_zeros(batch * math.prod(grid) * heads, width)
        rows = rows.index_add(0, index.flatten(), ((1 - share) * given).reshape(index.numel(), width))
        rows = rows.index_add(0, index.flatten() + step, (share * given).reshape(index.numel(), width))
        image = rows.view(batch, *grid, heads, width).narrow(1 + self.axis, 1, self.grid[self.axis])
        return image.reshape(batch, length, heads, width).transpose(1, 2)

    def to_dense(self) -> Tensor:
        place, size, stride = self._along()
        there = place + self.offset.to(working_dtype(self.offset))
        hat = (1 - (there.unsqueeze(-1) - place).abs()).clamp(min=0)
        tokens = torch.arange(place.shape[0], device=place.device)
        line = tokens // (size * stride) * stride + modulo(tokens, stride)
        return hat.masked_fill(line.unsqueeze(1) != line, 0).to(self.offset.dtype)

    def cost(self, width: int) -> Cost:
        size = self.offset.numel()
        return Cost(size * (6 + 3 * width), self.offset.itemsize * size * (1 + 3 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        # Off the integers, where the derivative has a jump.
        offset = (2 * torch.randn(batch, heads, math.prod(grid))).round() + 0.1 + 0.8 * torch.rand(())
        return cls(offset.to(dtype), tuple(grid), len(grid) - 1)
