"""Patches of a series as tokens (PatchTST)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected, merge_heads
from matmix.mixers.maps import TokenMap
from sequence.series.layers.positions import positions


class PatchEmbedding(TokenMap):
    """Patches of `patch` steps every `stride`, each through one linear layer, and positions.

    Series by themselves (B, L), or (B * C, L), to tokens (B, N, D), N as `tokens` says. The last value is repeated
    `pad` times beyond the end, so that the last steps stand in as many patches as others. Its matrix is
    (1, D, N, L), one head a channel: row n of head d holds ``W[d]`` from column ``stride * n`` on.

    Args:
        dim: D.
        patch, stride: steps of a patch, and from one to the next.
        pad: `stride` where absent.
        bias: of the linear layer.
        position: add sinusoidal positions.
        dropout: on the tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        patch: int = 16,
        stride: int = 8,
        pad: int | None = None,
        bias: bool = False,
        position: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1 or not 1 <= stride <= patch:
            raise ValueError(f"patch must be at least 1 and stride from 1 to patch, got patch={patch}, stride={stride}")
        self.patch, self.stride, self.position = patch, stride, position
        self.pad = stride if pad is None else pad
        self.embed = nn.Linear(patch, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def tokens(self, length: int) -> int:
        """N, the number of patches of a series of `length` steps."""
        if length + self.pad < self.patch:
            raise ValueError(f"length must be at least {self.patch - self.pad} with patch={self.patch}, got {length}")
        return (length + self.pad - self.patch) // self.stride + 1

    def real(self, mask: Tensor) -> Tensor:
        """Which patches hold a real step, (B, N), of a mask (B, L)."""
        return F.pad(mask, (0, self.pad)).unfold(1, self.patch, self.stride).any(-1)

    def project(self, x: Tensor) -> Projected:
        length, weight = x.shape[1], self.embed.weight
        count = self.tokens(length)
        start = self.stride * torch.arange(count, device=x.device)
        column = (start.unsqueeze(1) + torch.arange(self.patch, device=x.device)).clamp(max=length - 1)
        entries = weight.new_zeros(weight.shape[0], count, length)
        entries = entries.scatter_add(2, column.expand_as(weight.unsqueeze(1).expand(-1, count, -1)),
                                      weight.unsqueeze(1).expand(-1, count, -1))  # fmt: skip
        return Projected(Dense(entries.unsqueeze(0)), x[:, None, :, None].expand(-1, weight.shape[0], -1, -1))

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        self.tokens(x.shape[1])
        padded = F.pad(x.unsqueeze(1), (0, self.pad), mode="replicate").squeeze(1) if self.pad else x
        return F.linear(padded.unfold(1, self.patch, self.stride), self.embed.weight).mT.unsqueeze(-1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        tokens = merge_heads(mixed)
        if self.embed.bias is not None:
            tokens = tokens + self.embed.bias
        if self.position:
            tokens = tokens + positions(tokens.shape[1], tokens.shape[2], tokens)
        out: Tensor = self.dropout(tokens)
        return out
