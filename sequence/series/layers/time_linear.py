"""A linear layer along time: every series by the same weights, or each by its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class TimeLinear(TokenMap):
    """``y[s, c] = sum_l W[s, l] x[l, c] + b[s]``: L steps (B, L, C) to `out` steps (B, S, C).

    Args:
        length: L.
        out: S.
        series: sets of weights: 1 for all series, C for one each (its matrix then has C heads).
        bias: add one number a step.
    """

    def __init__(self, length: int, out: int, *, series: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.length, self.out, self.series = length, out, series
        bound = length**-0.5  # as nn.Linear draws both
        self.weight = nn.Parameter(torch.empty(series, out, length).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(series, out).uniform_(-bound, bound)) if bias else None

    def project(self, x: Tensor) -> Projected:
        values = x.unsqueeze(1) if self.series == 1 else x.mT.unsqueeze(-1)  # (B, 1, L, C) or (B, C, L, 1)
        return Projected(Dense(self.weight.unsqueeze(0)), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        if self.bias is not None:
            mixed = mixed + self.bias.unsqueeze(-1)
        return mixed.squeeze(1) if self.series == 1 else mixed.squeeze(-1).mT

    def extra_repr(self) -> str:
        return f"length={self.length}, out={self.out}, series={self.series}, bias={self.bias is not None}"
