"""AveragePool: the mean over a window of a sequence or an image."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes, check_window
from matmix.ops.cost import Cost
from matmix.ops.layout import image_of
from matmix.ops.precision import full_precision


class AveragePool(Matrix):
    """Row p averages the real tokens in the window about p; what lies beyond the grid is not counted. O(L K W).

    One matrix for all heads. An even window reaches one token further ahead. A row whose window holds no real token
    is zero.
    """

    grid: tuple[int, ...] = static(least=1)
    window: tuple[int, ...] = static(least=1)
    mask: Tensor | None = axes("B L", torch.bool, default=None)  # True = a real token
    dtype: torch.dtype = static(default=torch.float32)
    device: torch.device = static(default=torch.device("cpu"))

    properties: ClassVar = frozenset({"row_stochastic", "banded"})

    @classmethod
    def of(cls, values: Tensor, grid: tuple[int, ...], window: int, mask: Tensor | None = None) -> Self:
        """The pooling over a window of ``window`` tokens along every axis that values (B, H, L, W) can go through."""
        if not isinstance(window, int) or window < 1 or len(grid) not in (1, 2):
            raise ValueError(
                f"AveragePool: window must be a positive integer over a grid of one or two axes, "
                f"got window={window!r} over the grid {grid}"
            )
        return cls(tuple(grid), (window,) * len(grid), mask, values.dtype, values.device)

    def _check(self, sizes: dict[str, int]) -> None:
        check_window(type(self).__name__, self.grid, self.window, sizes)

    @property
    def shape(self) -> Shape:
        length = math.prod(self.grid)
        return (1 if self.mask is None else self.mask.shape[0], 1, length, length)

    @property
    def bandwidth(self) -> tuple[int, ...]:
        """How far a token reaches along each axis of the grid."""
        return tuple(k // 2 for k in self.window)

    def _sums(self, values: Tensor, mirrored: bool = False) -> Tensor:
        """Sums over the windows (over the mirrored windows)."""
        batch, heads, length, width = values.shape
        # As in Convolution: values that come from tokens are a channels-last image for free.
        tokens = values.transpose(1, 2).reshape(batch, length, heads * width)
        image = image_of(tokens, self.grid)
        window = self.window if len(self.window) == 2 else (1, *self.window)
        pad = (window[0] // 2, window[1] // 2)
        if values.device.type == "cpu":  # up to five times as fast there as the pooling kernels
            ones = image.new_ones(1, 1, 1, 1).expand(heads * width, 1, *window)
            with full_precision(values.device):  # pooling is not autocast, convolution would be
                mixed = F.conv2d(image, ones, padding=pad, groups=heads * width)
        else:
            mixed = F.avg_pool2d(image, window, 1, pad, divisor_override=1)
        for axis, k in enumerate(window):
            # An even window, padded on both sides, has one place too many: the first or the last.
            start = 0 if k % 2 or mirrored else 1
            mixed = mixed.narrow(2 + axis, start, image.shape[2 + axis])
        return mixed.flatten(2).mT.reshape(batch, length, heads, width).transpose(1, 2)

    def _weights(self) -> Tensor:
        """One over the number of real tokens in each window, ``(B or 1, 1, L, 1)``, zero where there is none."""
        if self.mask is not None:
            count = self._sums(self.mask[:, None, :, None].to(self._exact))
            return torch.where(count > 0, 1 / count.clamp(min=1), 0)
        count = torch.ones((), dtype=self._exact, device=self.device)
        for n, k in zip(self.grid, self.window, strict=True):
            here = torch.arange(n, device=self.device)
            count = count.unsqueeze(-1) * ((here + k // 2).clamp(max=n - 1) - (here - (k - 1) // 2).clamp(min=0) + 1)
        return count.reciprocal().view(1, 1, -1, 1)

    @property
    def _exact(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _matmul(self, values: Tensor) -> Tensor:
        kept = values if self.mask is None else values.masked_fill(~self.mask[:, None, :, None], 0)
        return self._weights() * self._sums(kept)

    def _rmatmul(self, values: Tensor) -> Tensor:
        mixed = self._sums((self._weights() * values).to(values.dtype), mirrored=True)
        return mixed if self.mask is None else mixed.masked_fill(~self.mask[:, None, :, None], 0)

    def diagonal(self) -> Tensor:
        weights = self._weights().squeeze(-1).to(self.dtype)
        return weights if self.mask is None else weights.masked_fill(~self.mask[:, None, :], 0)

    def to_dense(self) -> Tensor:
        inside = torch.ones((), dtype=torch.bool, device=self.device)
        axes = len(self.grid)
        for axis, (n, k) in enumerate(zip(self.grid, self.window, strict=True)):
            here = torch.arange(n, device=self.device)
            ahead = here - here.unsqueeze(1)
            view = [1] * (2 * axes)
            view[axis], view[axis + axes] = n, n
            inside = inside & ((ahead >= -((k - 1) // 2)) & (ahead <= k // 2)).view(view)
        length = math.prod(self.grid)
        near = inside.reshape(1, 1, length, length)
        if self.mask is not None:
            near = near & self.mask[:, None, None, :]
        return (near / near.sum(-1, keepdim=True).clamp(min=1).to(self._exact)).to(self.dtype)

    def cost(self, width: int) -> Cost:
        batch, _, length, _ = self.shape
        size = batch * length * width
        return Cost(size * math.prod(self.window), 2 * self.dtype.itemsize * size)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(tuple(grid), (3, 4)[: len(grid)], dtype=dtype, device=torch.get_default_device())
