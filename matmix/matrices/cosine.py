"""Cosine: the real part of the discrete Fourier transform of the tokens."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.fourier import own_turns, turns
from matmix.ops import fft
from matmix.ops.cost import Cost
from matmix.ops.fft import fft_flops
from matmix.ops.precision import working_dtype


class Cosine(Matrix):
    """``M[k, j] = gain cos(2 pi sum_a k_a j_a / n_a)`` over a grid; O(L log L W).

    Symmetric, and blind to odd parts: a signal and its mirror image (j to -j on the ring) have one transform.
    """

    properties: ClassVar = frozenset({"symmetric"})

    grid: tuple[int, ...] = static(least=1)
    gain: float = static(default=1.0)
    dtype: torch.dtype = static(default=torch.float32)
    device: torch.device = static(default=torch.device("cpu"))

    @classmethod
    def like(cls, values: Tensor, grid: tuple[int, ...], gain: float = 1.0) -> Self:
        """The matrix for values ``(B, H, L, W)`` over a grid."""
        return cls(grid, gain, values.dtype, values.device)

    @property
    def shape(self) -> Shape:
        length = math.prod(self.grid)
        return (1, 1, length, length)

    def _matmul(self, values: Tensor) -> Tensor:
        axes = tuple(range(2, 2 + len(self.grid)))
        maps = values.to(working_dtype(values)).unflatten(2, self.grid)
        # Of real numbers PyTorch transforms half, and fills in the other by symmetry.
        return fft.fftn(maps, dim=axes).real.flatten(2, -2) * self.gain

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._matmul(values)

    @property
    def mT(self) -> Self:
        return self

    def diagonal(self) -> Tensor:
        return (self.gain * (2 * math.pi * own_turns(self.grid, self.device)).cos()).to(self.dtype).view(1, 1, -1)

    def to_dense(self) -> Tensor:
        return (self.gain * (2 * math.pi * turns(self.grid, self.device)).cos()).to(self.dtype)[None, None]

    def cost(self, width: int) -> Cost:
        length = math.prod(self.grid)
        return Cost(width * (fft_flops(self.grid) + length), self.dtype.itemsize * 2 * length * width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(tuple(grid), 1 / math.sqrt(math.prod(grid)), dtype, torch.get_default_device())
