"""Uniform: every token gets the mean of all, the control for what choosing is worth."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.linear_attention import normalised
from matmix.mixers.registry import register


@register(
    "uniform",
    matrix="diag(1 / count) LowRank of rank 1; causal: Semiseparable without decay",
    cost="O(L D)",
    source="a control",
    paper="1706.03762 with equal scores",
)
class Uniform(Mixer):
    """``y = mean of all real tokens``, attention whose scores are all equal; no parameters.

    Args:
        causal: the mean of the tokens so far.
    """

    traits = Traits(mask="trim")

    def __init__(self, dim: int, grid: Grid | None = None, *, causal: bool = False) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, aligned=True, packed=True)
        super().__init__(dim, grid)
        self.causal = causal

    def project(self, x: Tensor, context: Context) -> Projected:
        rows = x.new_ones(1, 1, x.shape[1], 1)
        real = rows if context.mask is None else context.mask[:, None, :, None].to(x.dtype)
        rows = rows.expand(real.shape[0], -1, -1, -1)
        return Projected(normalised(rows, real, causal=self.causal, segments=context.segments), x.unsqueeze(1))
