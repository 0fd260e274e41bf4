"""Zero: the mixing term is nothing, the control for what a block does without its mixer."""

from __future__ import annotations

from torch import Tensor

from matmix.matrices.low_rank import LowRank
from matmix.mixers.base import Context, Mixer, Projected, Traits
from matmix.mixers.registry import register


@register("zero", matrix="LowRank of rank 0", cost="O(1)", source="a control", paper="")
class Zero(Mixer):
    """``y = 0``: what is left of a residual block is its residual and its channel MLP."""

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True, mixes=False, packed=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = x.unsqueeze(1)
        nothing = values.new_zeros(1, 1, x.shape[1], 0)
        return Projected(LowRank(nothing, nothing), values)
