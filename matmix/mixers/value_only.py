"""Value only: attention's value and output projections without the mixing between them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.matrices.identity import Identity
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.linear import linear


@register(
    "value_only", matrix=Identity, cost="O(L D^2)", source="a control", paper="1706.03762 with an identity matrix"
)
class ValueOnly(Mixer):
    """``y = W_o W_v x``: tells what the projections around a mixer are worth from what the mixing is.

    Args:
        bias: of both projections.
    """

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True, mixes=False, packed=True)

    def __init__(self, dim: int, grid: Grid | None = None, *, bias: bool = False) -> None:
        super().__init__(dim, grid)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = split_heads(linear(self.value, x), 1)
        return Projected(Identity.like(values), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed))
