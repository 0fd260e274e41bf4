"""Decomposition of a series into its moving average, the trend, and the rest, the season."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class Decomposition(TokenMap):
    """Season and trend, (B, L, C) each, of (B, L, C): the trend is the mean of `kernel` steps about each.

    Beyond either end the last value is repeated, so the outer columns of its matrix (1, 1, L, L) are heavier.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        if not isinstance(kernel, int) or kernel < 1 or not kernel % 2:
            raise ValueError(f"kernel must be an odd number of steps, which keeps the length, got {kernel!r}")
        self.kernel = kernel

    def project(self, x: Tensor) -> Projected:
        length, reach = x.shape[1], self.kernel // 2
        here = torch.arange(length, device=x.device)
        near = here.unsqueeze(1) + torch.arange(-reach, reach + 1, device=x.device)
        count = F.one_hot(near.clamp(0, length - 1), length).sum(1)
        return Projected(Dense((count.to(x.dtype) / self.kernel)[None, None]), x.unsqueeze(1), x)

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        reach = self.kernel // 2
        padded = F.pad(x.mT, (reach, reach), mode="replicate")
        return F.avg_pool1d(padded, self.kernel, 1).mT.unsqueeze(1), x

    def merge(self, mixed: Tensor, rest: Any) -> tuple[Tensor, Tensor]:
        trend = mixed.squeeze(1)
        return rest - trend, trend

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"
