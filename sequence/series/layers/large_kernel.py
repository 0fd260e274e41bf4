"""A depthwise convolution along time with a large kernel: ModernTCN's mixer, and a part of FFNet's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.matrices.convolution import Convolution
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads
from matmix.mixers.registry import create_mixer
from matmix.ops.reparam import BranchedConv, convolved, kernel_of


class LargeKernel(Mixer):
    """``y = T x + b``, T a convolution a channel about the token, zeros beyond the border.

    In training it is two branches, each with a batch norm, of which one is short; outside of it they are one kernel.

    Args:
        kernel, small: taps of the convolution and of its branch, odd.
    """

    traits = Traits(mask="trim", dims=frozenset({1}))

    def __init__(self, dim: int, grid: Grid | None = None, *, kernel: int = 51, small: int = 5) -> None:
        super().__init__(dim, grid)
        for name, taps in (("kernel", kernel), ("small", small)):
            if taps < 1 or not taps % 2 or taps > kernel:
                raise ValueError(f"{name} must be odd and at most kernel={kernel}, got {taps!r}")
        self.conv = BranchedConv(dim, {"conv": (kernel,), "conv1": (small,)})
        self.kernel = kernel

    def project(self, x: Tensor, context: Context) -> Projected:
        mask = None if context.mask is None else context.mask[:, None, None]
        kernel, bias = kernel_of(self.conv, x.mT.unsqueeze(2), (self.kernel,), mask)
        return Projected(Convolution.centred(kernel, context.grid), x.mT.unsqueeze(-1), bias)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        """By the convolution itself; the biases are in the product."""
        mask = None if context.mask is None else context.mask[:, None, None]
        return convolved(self.conv, x.mT.unsqueeze(2), mask, axes=1).flatten(2).unsqueeze(-1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        tokens = merge_heads(mixed)
        return tokens if rest is None else tokens + rest


class EachSeries(nn.Module):
    """A mixer on the tokens of each of C series by itself: (B, N, C * D) to (B, N, C * D).

    Args:
        spec: the mixer's, of width D.
        channels, dim: C and D.
        grid: of the tokens.
    """

    def __init__(self, spec: str, channels: int, dim: int, grid: Grid) -> None:
        super().__init__()
        self.channels, self.mixer = channels, create_mixer(spec, dim, grid)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C * D), the series the slow axis, and a mask (B, N)."""
        series = x.unflatten(2, (self.channels, -1)).transpose(1, 2)
        mask = None if mask is None else mask.repeat_interleave(self.channels, 0)
        mixed = self.mixer(series.flatten(0, 1), mask=mask)
        return mixed.view(series.shape).transpose(1, 2).flatten(2)
