"""Uniform: every token gets the mean of all, the control for what choosing is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.linear_attention import normalised, ranged
from matmix.mixers.registry import register
from matmix.ops.precision import full_precision


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
        x = ranged(x)
        rows = x.new_ones(1, 1, x.shape[1], 1)
        real = rows if context.mask is None else context.mask[:, None, :, None].to(x.dtype)
        rows = rows.expand(real.shape[0], -1, -1, -1)
        return Projected(normalised(rows, real, causal=self.causal, segments=context.segments), x.unsqueeze(1))

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        matrix, values, rest = self.project(x, context)
        with full_precision(x.device):  # autocast would take the sums back to float16
            return matrix.matmul(values), rest
