"""The layer norm of seasonal parts: what is left has no mean over time (Autoformer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matmix.matrices.identity import Identity
from matmix.matrices.low_rank import LowRank
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class SeasonNorm(TokenMap):
    """``z - mean over time of z``, z the layer norm of (B, L, D). Its matrix is ``I - 1 1^T / L``.

    With a mask (B, L) the mean is over the real steps.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Projected:
        values = self.norm(x).unsqueeze(1)
        ones = torch.ones_like(values[:1, :, :, :1])
        real = ones if mask is None else mask[:, None, :, None].to(values.dtype)
        share = real / real.sum(2, keepdim=True).clamp(min=1)
        return Projected(Identity.like(values) - LowRank(ones.expand_as(share), share), values)

    def product(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        if mask is not None:
            return super().product(x, mask)
        normed = self.norm(x)
        return (normed - normed.mean(1, keepdim=True)).unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(1)
