"""RevIN: instance normalisation with a learned scale and offset a series (Kim et al., ICLR 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sequence.series.layers.normalise import InstanceNorm, Window


class RevIN(InstanceNorm):
    """``weight (x - mean) / std + bias`` over the steps of a window, and back. No gradient goes through mean and std.

    Args:
        channels: C, series that have a weight and a bias.
        affine: False is without them.
        eps: added to the variance, and its square to the weight on the way back (as published).
    """

    learns_through_std: ClassVar[bool] = False

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Window]:
        normed, window = super().forward(x, observed)
        if self.weight is not None and self.bias is not None:
            normed = normed * self.weight + self.bias
        return normed, window

    def undo(self, y: Tensor, window: Window) -> Tensor:
        if self.weight is not None and self.bias is not None:
            y = (y - self.bias) / (self.weight + self.eps * self.eps)
        return super().undo(y, window)
