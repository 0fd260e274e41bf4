"""Elementwise: queries, keys and values meet position by position, the control for attention without mixing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.matrices.diagonal import Diagonal
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.linear import linear


@register(
    "elementwise",
    matrix="Diagonal per channel",
    cost="O(L D^2)",
    source="a control",
    paper="element-wise fusion of queries, keys and values, ACL 2026",
)
class Elementwise(Mixer):
    """``y = W_o (q k v)``, multiplied channel by channel: the parameters of attention, and no token sees another.

    As a matrix: ``diag(q k)`` for every channel, which depends on the data.

    Args:
        qkv_bias: biases of queries, keys and values.
        proj_bias: bias of the output projection.
    """

    traits = Traits(
        causal=True, data_dependent=True, mask="trim", recurrent=True, aligned=True, mixes=False, packed=True
    )

    def __init__(self, dim: int, grid: Grid | None = None, *, qkv_bias: bool = False, proj_bias: bool = False) -> None:
        super().__init__(dim, grid)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        query, key, value = linear(self.qkv, x).chunk(3, -1)
        return Projected(Diagonal((query * key).mT), split_heads(value.contiguous(), self.dim))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed))
