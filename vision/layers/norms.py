"""Norms of channels-last maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MapNorm(nn.Module):
    """Normalise a whole map ``(B, rows, columns, C)`` by one mean and variance, then scale every channel.

    A group norm with one group: PoolFormer's norm with a bias and ``eps=1e-5``, the "modified layer norm" of
    PoolFormerV2, IdentityFormer and RandFormer without a bias and with ``eps=1e-6``.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)  # a channels-last image, for which there is a kernel of its own
        return F.group_norm(image, 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, bias={self.bias is not None}"


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": lambda dim: nn.LayerNorm(dim, eps=1e-6, bias=False),  # over the channels of a position
    "layer_bias": lambda dim: nn.LayerNorm(dim, eps=1e-5),
    "map": lambda dim: MapNorm(dim),  # over the whole map
    "map_bias": lambda dim: MapNorm(dim, eps=1e-5, bias=True),
}


def make_norm(name: str, dim: int) -> nn.Module:
    """A norm by its name, for ``dim`` channels."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    return NORMS[name](dim)
