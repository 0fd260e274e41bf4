"""Fourier: the discrete Fourier transform of tokens as a real matrix, a row of blocks over two value streams."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.ops import fft
from matmix.ops.cost import Cost
from matmix.ops.fft import fft_flops
from matmix.ops.precision import working_dtype
from matmix.ops.sizes import modulo


class Fourier(Matrix):
    """``M = [C, -S]`` with ``F = C - i S`` the DFT over the grid; O(L log L W).

    ``C[k, j] = cos(2 pi sum_a k_a j_a / n_a)`` and ``S`` the same with sin, times ``gain``. Values are two streams
    stacked along the tokens, and ``M [V1; V2] = C V1 - S V2 = Re(F (V1 - i V2))``: the real part of the forward
    transform of V1 - i V2.

    With ``pairs``, values are complex numbers Z as pairs of neighbouring tokens (as ``view_as_real`` has them), and
    the columns are ``C[:, 0], S[:, 0], C[:, 1], ...``: the same matrix on ``V1 = Re Z, V2 = -Im Z``, laid out so that
    a transform's output is values as it stands. (FNet: Z = X F_D.)

    The result is real, so only the Hermitian part of V1 - i V2 reaches it; that has half the numbers, and one
    complex-to-real transform does it.
    """

    dense_below: ClassVar = 16

    grid: tuple[int, ...] = static(least=1)
    gain: float = static(default=1.0)
    pairs: bool = static(default=False)
    dtype: torch.dtype = static(default=torch.float32)
    device: torch.device = static(default=torch.device("cpu"))

    @classmethod
    def like(cls, values: Tensor, grid: tuple[int, ...], gain: float = 1.0, *, pairs: bool = False) -> Self:
        """The matrix for values ``(B, H, 2L, W)`` over a grid."""
        return cls(grid, gain, pairs, values.dtype, values.device)

    @property
    def shape(self) -> Shape:
        length = math.prod(self.grid)
        return (1, 1, length, 2 * length)

    def _matmul(self, values: Tensor) -> Tensor:
        axes = tuple(range(2, 2 + len(self.grid)))
        exact = values.to(working_dtype(values))
        if self.pairs:
            first, second = exact.unflatten(2, (*self.grid, 2)).unbind(2 + len(self.grid))
            second = -second
        else:
            first, second = exact.unflatten(2, (2, *self.grid)).unbind(2)
        first_back, second_back = first, second
        for axis, size in zip(axes, self.grid, strict=True):
            kept = size // 2 + 1 if axis == axes[-1] else size
            back = modulo(-torch.arange(kept, device=values.device), size)
            first, second = first.narrow(axis, 0, kept), second.narrow(axis, 0, kept)
            first_back, second_back = first_back.index_select(axis, back), second_back.index_select(axis, back)
        # (z[j] + conj z[-j]) / 2 for z = V1 - i V2
        half = torch.complex(first + first_back, second_back - second) * (self.gain / 2)
        return fft.hfftn(half, self.grid, dim=axes).flatten(2, -2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        axes = tuple(range(2, 2 + len(self.grid)))
        maps = values.to(working_dtype(values)).unflatten(2, self.grid)
        both = fft.fftn(maps, dim=axes).flatten(2, -2) * self.gain
        if self.pairs:
            return torch.stack([both.real, -both.imag], 3).flatten(2, 3)
        return torch.cat([both.real, both.imag], 2)

    def to_dense(self) -> Tensor:
        angle = 2 * math.pi * turns(self.grid, self.device)
        if self.pairs:
            entries = torch.stack([angle.cos(), angle.sin()], 2).flatten(1)
        else:
            entries = torch.cat([angle.cos(), -angle.sin()], 1)
        return (self.gain * entries).to(self.dtype)[None, None]

    def diagonal(self) -> Tensor:
        if self.pairs:
            return super().diagonal()
        return (self.gain * (2 * math.pi * own_turns(self.grid, self.device)).cos()).to(self.dtype).view(1, 1, -1)

    def cost(self, width: int) -> Cost:
        length = math.prod(self.grid)
        return Cost(
            width * (fft_flops(self.grid) + 3 * length),
            self.dtype.itemsize * 3 * length * width,
        )

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        gain, device = 1 / math.sqrt(math.prod(grid)), torch.get_default_device()
        return cls(tuple(grid), gain, pairs=len(grid) == 2, dtype=dtype, device=device)


def turns(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """``sum_a k_a j_a / n_a`` for frequencies k and places j of a grid, float64 ``(L, L)``; whole turns taken off."""
    total, axes = torch.zeros((), dtype=torch.float64, device=device), len(grid)
    for axis, size in enumerate(grid):
        place = torch.arange(size, device=device)
        view = [1] * (2 * axes)
        view[axis], view[axis + axes] = size, size
        total = total + modulo(place[:, None] * place, size).view(view).double() / size
    return total.reshape(math.prod(grid), math.prod(grid))


def own_turns(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """The diagonal of ``turns``, ``(L,)``."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for size in grid:
        place = torch.arange(size, device=device)
        total = total.unsqueeze(-1) + modulo(place**2, size).double() / size
    return total.flatten()
