"""Banded: a few diagonals with free entries; local windows and data-dependent convolutions."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Banded(Matrix):
    """``M[i, i + offsets[k]] = bands[i, k]``; O(L K W) per head.

    Entries of ``bands`` whose column lies beyond the sequence are no part of the matrix. Offsets that occur twice
    add up.
    """

    bands: Tensor = axes("B|1 H L K")
    offsets: tuple[int, ...] = static()

    properties: ClassVar = frozenset({"banded"})

    @classmethod
    def of(cls, bands: Tensor, offsets: tuple[int, ...]) -> Self:
        """The matrix with the diagonals ``bands[..., k]`` at ``offsets[k]`` (positive: to the right)."""
        return cls(bands, tuple(offsets)).check()

    def _check(self, sizes: dict[str, int]) -> None:
        if sizes["K"] != len(self.offsets) or not self.offsets:
            raise ValueError(
                f"Banded: bands must have one offset for each of the K bands, got {sizes['K']} and {self.offsets}"
            )

    @property
    def shape(self) -> Shape:
        batch, heads, length, _ = self.bands.shape
        return (batch, heads, length, length)

    @property
    def bandwidth(self) -> int:
        """Entries with ``|i - j|`` beyond it are zero."""
        return max(abs(offset) for offset in self.offsets)

    def _reach(self) -> tuple[int, int]:
        return max(0, -min(self.offsets)), max(0, *self.offsets)

    def _matmul(self, values: Tensor) -> Tensor:
        length = self.bands.shape[2]
        left, right = self._reach()
        padded = F.pad(values, (0, 0, left, right))
        mixed = values.new_zeros(())
        for k, offset in enumerate(self.offsets):
            mixed = mixed + self.bands[..., k : k + 1] * padded[:, :, left + offset : left + offset + length]
        return mixed

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.mT._matmul(values)

    @property
    def mT(self) -> Banded:
        # M^T[j, j - o] = bands[j - o]: every band moves along with its offset.
        length = self.bands.shape[2]
        left, right = self._reach()
        padded = F.pad(self.bands, (0, 0, right, left))
        moved = [padded[:, :, right - o : right - o + length, k] for k, o in enumerate(self.offsets)]
        return Banded(torch.stack(moved, -1), tuple(-offset for offset in self.offsets))

    def diagonal(self) -> Tensor:
        centre = [k for k, offset in enumerate(self.offsets) if offset == 0]
        return self.bands[..., centre].sum(-1)

    def to_dense(self) -> Tensor:
        length = self.bands.shape[2]
        here = torch.arange(length, device=self.bands.device)
        entries = self.bands.new_zeros(())
        for k, offset in enumerate(self.offsets):
            at = here == here.unsqueeze(1) + offset
            entries = entries + torch.where(at, self.bands[..., k : k + 1], 0)
        return entries

    def cost(self, width: int) -> Cost:
        batch, heads, length, count = self.bands.shape
        size = batch * heads * length
        return Cost(2 * size * count * width, self.bands.itemsize * size * (count + 2 * width))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, math.prod(grid), 4, dtype=dtype), (-1, 0, 2, -3))
