"""Identity: no mixing at all, the control that every study needs."""

from __future__ import annotations

from torch import Tensor

from matmix.matrices.identity import Identity as IdentityMatrix
from matmix.mixers.base import Context, Mixer, Projected, Traits
from matmix.mixers.registry import register


@register(
    "identity", matrix=IdentityMatrix, cost="O(1)", source="sail-sg/metaformer", paper="2210.13452, IdentityFormer"
)
class Identity(Mixer):
    """``y = x`` (IdentityFormer's token mixer)."""

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True, mixes=False, packed=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = x.unsqueeze(1)
        return Projected(IdentityMatrix.like(values), values)
