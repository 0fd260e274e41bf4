"""Fewer tokens for the next stage: neighbours become one (ModernTCN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap
from sequence.layers.norms import TokenBatchNorm


class Downsample(TokenMap):
    """`factor` neighbouring tokens to one, (B, N, C, D) to (B, N / factor, C, E), after a batch norm over D.

    Where the factor does not divide N, as many of the last tokens are read again behind them (as published). Its matrix
    (1, 1, N / factor, factor * N) is a row of blocks that each pick one token of every group, over the streams
    ``W_t x``.
    """

    def __init__(self, dim: int, out: int, factor: int) -> None:
        super().__init__()
        self.norm = TokenBatchNorm(dim)
        self.reduce = nn.Linear(dim * factor, out)
        self.factor = factor

    def tokens(self, length: int) -> int:
        """How many come out of `length`."""
        return -(-length // self.factor)

    def real(self, mask: Tensor) -> Tensor:
        """Which of them are made of a real token."""
        return F.pad(mask, (0, -mask.shape[1] % self.factor)).unflatten(1, (-1, self.factor)).any(-1)

    def _places(self, length: int) -> Tensor:
        """(N / factor, factor): the tokens that are read."""
        more = -length % self.factor
        here = torch.arange(length)
        return torch.cat((here, here[length - more :])).view(-1, self.factor)

    def project(self, x: Tensor) -> Projected:
        batch, length, series, _ = x.shape
        weights = self.reduce.weight.unflatten(1, (self.factor, -1)).unbind(1)
        normed = self.norm(x)
        streams = torch.cat([F.linear(normed, weight) for weight in weights], 1).flatten(2).unsqueeze(1)
        places = self._places(length) + length * torch.arange(self.factor)
        picked = F.one_hot(places, length * self.factor).sum(1).to(x)
        return Projected(Dense(picked[None, None]), streams, (series, batch))

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        batch, length, series, _ = x.shape
        groups = self.norm(x)[:, self._places(length).to(x.device)].transpose(2, 3).flatten(3)
        return F.linear(groups, self.reduce.weight).flatten(2).unsqueeze(1), (series, batch)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(1).unflatten(2, (rest[0], -1)) + self.reduce.bias
