"""Toeplitz: one tap a lag; convolutions over the whole length, by FFT."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.fft import convolve, fast_len, fft_flops
from matmix.ops.sizes import known


class Toeplitz(Matrix):
    """``M[i, j] = taps[i - j]``, the lags from ``-(L - 1)`` to ``L - 1``; O(L log L W) per head.

    The product is a linear convolution of which the L samples in the middle are kept: one real FFT of the taps, one
    of the values and one back, of a fast length from ``2L - 1`` on. Half types are transformed in float32.
    """

    taps: Tensor = axes("B|1 H 2L-1")  # taps[..., L - 1] is lag 0

    properties: ClassVar = frozenset({"toeplitz"})
    dense_below: ClassVar = 32  # at width 1

    @property
    def shape(self) -> Shape:
        batch, heads, size = self.taps.shape
        length = (size + 1) // 2
        return (batch, heads, length, length)

    def _dense_is_faster(self, width: int) -> bool:
        return dense_toeplitz_is_faster(self.shape[3], width, self.dense_below)

    def _matmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps, self.taps.shape[-1] // 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps.flip(-1), self.taps.shape[-1] // 2)

    @property
    def mT(self) -> Toeplitz:
        return Toeplitz(self.taps.flip(-1))

    def diagonal(self) -> Tensor:
        length = self.shape[3]
        return self.taps.narrow(-1, length - 1, 1).expand(-1, -1, length)

    def to_dense(self) -> Tensor:
        return lags_to_dense(self.taps)

    def cost(self, width: int) -> Cost:
        return toeplitz_cost(self.shape, self.taps.itemsize, width) + Cost(0, self.taps.itemsize * self.taps.numel())

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, 2 * math.prod(grid) - 1, dtype=dtype))


class CausalToeplitz(Matrix):
    """``M[i, j] = taps[i - j]`` for ``j <= i``, else 0; O(L log L W) per head, as ``Toeplitz``."""

    taps: Tensor = axes("B|1 H L")  # the lags 0 to L - 1

    properties: ClassVar = frozenset({"causal", "toeplitz"})
    dense_below: ClassVar = 32  # at width 1

    @property
    def shape(self) -> Shape:
        batch, heads, length = self.taps.shape
        return (batch, heads, length, length)

    def _dense_is_faster(self, width: int) -> bool:
        return dense_toeplitz_is_faster(self.shape[3], width, self.dense_below)

    def _matmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps, 0)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps.flip(-1), self.taps.shape[-1] - 1)

    @property
    def mT(self) -> Toeplitz:
        return Toeplitz(F.pad(self.taps.flip(-1), (0, self.taps.shape[-1] - 1)))

    def diagonal(self) -> Tensor:
        return self.taps.narrow(-1, 0, 1).expand_as(self.taps)

    def to_dense(self) -> Tensor:
        return lags_to_dense(F.pad(self.taps, (self.taps.shape[-1] - 1, 0)))

    def cost(self, width: int) -> Cost:
        return toeplitz_cost(self.shape, self.taps.itemsize, width) + Cost(0, self.taps.itemsize * self.taps.numel())

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, math.prod(grid), dtype=dtype))


def lags_to_dense(taps: Tensor) -> Tensor:
    """Taps ``(..., 2L - 1)`` of the lags ``-(L - 1) .. L - 1`` as ``M[i, j] = taps[i - j]``, ``(..., L, L)``."""
    # The windows of length L of the reversed taps are the rows from the last to the first. A gather by i - j says the
    # same, and its gradient takes ten times as long.
    return taps.flip(-1).unfold(-1, (taps.shape[-1] + 1) // 2, 1).flip(-2)


def two_sided(back: Tensor, now: Tensor, ahead: Tensor) -> Tensor:
    """Taps ``(..., 2L - 1)`` of ``Toeplitz`` from those of the lags ``0 .. L - 1`` to either side, and that of lag 0.

    Args:
        back: ``(..., L)``, taps of tokens that come later; its first is not read.
        now: ``(..., 1)``.
        ahead: ``(..., L)``, taps of tokens that came before; its first is not read.
    """
    length = ahead.shape[-1]
    if known(length):
        return torch.cat((back[..., 1:].flip(-1), now, ahead[..., 1:]), -1)
    # L - 1 lags may be a single one, which a tracer would take for a special case; 2L - 1 of two tokens are not.
    lag = torch.arange(2 * length - 1, device=ahead.device) - (length - 1)
    sides = torch.where(lag < 0, F.pad(back.flip(-1), (0, length - 1)), F.pad(ahead, (length - 1, 0)))
    return torch.where(lag == 0, now, sides)


def dense_toeplitz_is_faster(length: int, width: int, at_one: int) -> bool:
    """L up to ``at_one sqrt(W)``: writing L^2 entries out pays off over the W columns that share them."""
    return length * length <= at_one * at_one * width


def toeplitz_cost(shape: Shape, itemsize: int, width: int) -> Cost:
    """Real FFTs of the padded length and one complex product; the taps are transformed once. Bytes of the values."""
    batch, heads, length, _ = shape
    padded, rows = fast_len(2 * length - 1), batch * heads
    flops = rows * ((1 + 2 * width) * fft_flops((padded,)) + 3 * padded * width)
    return Cost(flops, 2 * itemsize * rows * length * width)
