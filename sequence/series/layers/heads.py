"""Heads: what is read off the tokens of a window, all of them at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class FlattenHead(TokenMap):
    """All tokens of a series to its steps: (B, C, N, D) to (B, S, C), one linear layer for all series (PatchTST).

    Its matrix is (1, 1, S, D * N), over the channels of the tokens, the tokens side by side.
    """

    def __init__(self, tokens: int, dim: int, steps: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens * dim, steps)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor) -> Projected:
        values = x.mT.flatten(2).mT.unsqueeze(1)  # (B, 1, D * N, C)
        return Projected(Dense(self.linear.weight[None, None]), values)

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        # All samples and series are rows of one product, and so is the gradient of the weight.
        return F.linear(x.mT.flatten(2), self.linear.weight).mT.unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        steps: Tensor = self.dropout(mixed.squeeze(1) + self.linear.bias.unsqueeze(-1))
        return steps


class PatchHead(TokenMap):
    """Each token of a series to steps of its own: (B, C, N, D) to (B, S, C), one linear layer for all (ModernTCN).

    Laid one behind the other and cut at S. Its matrix is (1, 1, S, N * D), a block for every token, over the channels
    of the tokens, the tokens the slow axis.

    Args:
        tokens, dim: N and D.
        steps: S.
        each: steps of a token, at least S / N.
    """

    def __init__(self, tokens: int, dim: int, steps: int, each: int) -> None:
        super().__init__()
        if tokens * each < steps:
            raise ValueError(f"each={each} steps of {tokens} tokens are fewer than steps={steps}")
        self.linear = nn.Linear(dim, each)
        self.tokens, self.steps = tokens, steps

    def project(self, x: Tensor) -> Projected:
        weight = self.linear.weight
        apart = torch.eye(self.tokens, dtype=weight.dtype, device=weight.device)
        return Projected(Dense(torch.kron(apart, weight)[None, None, : self.steps]), x.flatten(2).mT.unsqueeze(1))

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        return F.linear(x, self.linear.weight).flatten(2)[..., : self.steps].mT.unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(1) + self.linear.bias.repeat(self.tokens)[: self.steps].unsqueeze(-1)


class ClassHead(TokenMap):
    """All tokens (B, N, D) to scores (B, classes): activation, dropout, zeros at padding, one linear layer.

    Its matrix is (1, 1, classes, N * D).

    Args:
        tokens: N.
        dim: D.
        classes: how many.
        act: "gelu", as behind encoders, or "none".
        dropout: on the tokens.
    """

    def __init__(self, tokens: int, dim: int, classes: int, *, act: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        if act not in ("gelu", "none"):
            raise ValueError(f"act must be 'gelu' or 'none', got {act!r}")
        self.dim, self.act = dim, act
        self.linear = nn.Linear(tokens * dim, classes)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Projected:
        tokens = self.dropout(F.gelu(x) if self.act == "gelu" else x)
        if mask is not None:
            tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0)
        return Projected(Dense(self.linear.weight[None, None]), tokens.flatten(1)[:, None, :, None])

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.flatten(1) + self.linear.bias
