"""Series as tokens: the whole window of a series is one token, and so is that of each time mark (iTransformer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class InvertedEmbedding(TokenMap):
    """``y[c] = W x[:, c] + b``: a window (B, L, C) and its marks (B, L, K) to series as tokens (B, C + K, D).

    Its matrix, (1, 1, D, L), mixes steps into the D channels of a token; series do not mix.
    """

    def __init__(self, length: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(length, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, marks: Tensor | None = None) -> Projected:
        values = x if marks is None else torch.cat((x, marks), 2)
        return Projected(Dense(self.embed.weight[None, None]), values.unsqueeze(1))

    def product(self, x: Tensor, marks: Tensor | None = None) -> tuple[Tensor, Any]:
        # All samples and series are rows of one product, and so is the gradient of the weight.
        values = x if marks is None else torch.cat((x, marks), 2)
        return F.linear(values.mT, self.embed.weight).mT.unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        embedded: Tensor = self.dropout(mixed.squeeze(1).mT + self.embed.bias)
        return embedded
