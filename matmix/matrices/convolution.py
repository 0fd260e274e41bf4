"""Convolution: one small kernel a head over a sequence or an image; a banded Toeplitz matrix, or blocks of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.depthwise import convolve
from matmix.ops.layout import image_of


class Convolution(Matrix):
    """``(M v)[p] = sum_t kernel[t] v[p + t - before]`` with zeros beyond the grid; O(L K W) per head.

    The kernel slides as in ``torch.nn.Conv1d`` and ``Conv2d`` (it is not flipped). ``before`` says how many of its
    taps lie before the token: half of them in a centred kernel, all but one in a causal one.
    """

    kernel: Tensor = axes("H *taps")  # one axis of taps a grid axis
    grid: tuple[int, ...] = static(least=1)
    before: tuple[int, ...] = static(least=0)

    properties: ClassVar = frozenset({"banded", "toeplitz"})

    @classmethod
    def centred(cls, kernel: Tensor, grid: tuple[int, ...]) -> Self:
        """A kernel about the token; of an even one the longer half comes after."""
        return cls._checked(kernel, grid, tuple((k - 1) // 2 for k in kernel.shape[1:]))

    @classmethod
    def causal(cls, kernel: Tensor, length: int) -> Self:
        """A kernel (H, k) over a sequence whose last tap is the token itself."""
        return cls._checked(kernel, (length,), (kernel.shape[1] - 1,))

    @classmethod
    def _checked(cls, kernel: Tensor, grid: tuple[int, ...], before: tuple[int, ...]) -> Self:
        if kernel.dim() != len(grid) + 1 or len(grid) not in (1, 2):
            raise ValueError(
                f"Convolution: kernel must be (H, k) over a grid (L,) or (H, k_rows, k_columns) over a grid "
                f"(rows, columns), got a kernel {tuple(kernel.shape)} over the grid {grid}"
            )
        return cls(kernel, tuple(grid), before)

    def _check(self, sizes: dict[str, int]) -> None:
        if len(self.kernel.shape) != len(self.grid) + 1 or len(self.before) != len(self.grid):
            raise ValueError(
                f"Convolution: kernel must be of H and an axis for each of the grid {self.grid}, as before must, got "
                f"{tuple(self.kernel.shape)} and {self.before}"
            )

    @property
    def shape(self) -> Shape:
        length = math.prod(self.grid)
        return (1, self.kernel.shape[0], length, length)

    @property
    def bandwidth(self) -> tuple[int, ...]:
        """How far a token reaches along each axis of the grid."""
        return tuple(max(b, k - 1 - b) for b, k in zip(self.before, self.kernel.shape[1:], strict=True))

    def _matmul(self, values: Tensor) -> Tensor:
        batch, heads, length, width = values.shape
        # Values that come from tokens (B, L, H*W) are a view of them, and so is the channels-last image of them,
        # the layout in which depthwise convolution is fastest (1.7 times on CPU). A sequence is a row of an image.
        tokens = values.transpose(1, 2).reshape(batch, length, heads * width)
        image = image_of(tokens, self.grid)
        kernel, before = self.kernel.to(values.dtype), (0, *self.before)[-2:]
        if kernel.dim() == 2:
            kernel = kernel.unsqueeze(1)
        kernel = kernel.expand(heads, -1, -1).repeat_interleave(width, 0) if width > 1 else kernel.expand(heads, -1, -1)
        mixed = convolve(image, kernel.unsqueeze(1), None, before)
        return mixed.flatten(2).mT.reshape(batch, length, heads, width).transpose(1, 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.mT._matmul(values)

    @property
    def mT(self) -> Convolution:
        sizes = self.kernel.shape[1:]
        flipped = self.kernel.flip(tuple(range(1, self.kernel.dim())))
        return Convolution(flipped, self.grid, tuple(k - 1 - b for k, b in zip(sizes, self.before, strict=True)))

    def diagonal(self) -> Tensor:
        inside = all(0 <= b < k for b, k in zip(self.before, self.kernel.shape[1:], strict=True))
        at: tuple[Any, ...] = (slice(None), *self.before)
        tap = self.kernel[at] if inside else self.kernel.new_zeros(self.kernel.shape[0])
        return tap[None, :, None].expand(1, -1, math.prod(self.grid))

    def to_dense(self) -> Tensor:
        taps: list[Any] = [slice(None)]
        inside = torch.ones((), dtype=torch.bool, device=self.kernel.device)
        for axis, (n, k, b) in enumerate(zip(self.grid, self.kernel.shape[1:], self.before, strict=True)):
            here = torch.arange(n, device=self.kernel.device)
            tap = here - here.unsqueeze(1) + b  # (i, j) -> the tap that joins them
            view = [1, 1, 1, 1] if len(self.grid) == 2 else [1, 1]
            view[axis], view[axis + len(self.grid)] = n, n
            inside = inside & ((tap >= 0) & (tap < k)).view(view)
            taps.append(tap.clamp(0, k - 1).view(view))
        entries = self.kernel[tuple(taps)].masked_fill(~inside, 0)
        return entries.reshape(self.shape)

    def cost(self, width: int) -> Cost:
        _, heads, length, _ = self.shape
        taps = math.prod(self.kernel.shape[1:])
        size = heads * length * width
        return Cost(2 * size * taps, self.kernel.itemsize * (2 * size + self.kernel.numel()))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        # Uneven sizes off the centre: a mistaken flip or shift shows.
        kernel = torch.randn(heads, *(3, 4)[: len(grid)], dtype=dtype)
        return cls(kernel, tuple(grid), (2, 1)[: len(grid)])
