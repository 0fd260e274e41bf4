"""Dense: a free matrix over the tokens, learned and the same for all data."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense as DenseMatrix
from matmix.matrices.identity import Identity
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, split_heads
from matmix.mixers.registry import register
from matmix.ops import interpolate


@register("dense", matrix=DenseMatrix, cost="O(L^2 D)", source="Thrillcrazyer/JustDense", paper="2508.09153")
class Dense(Mixer):
    """``y = M x`` with one free L x L matrix a head, heads being contiguous shares of the channels.

    The published layer (Hydra's dense class, 2407.09941, copied by JustDense) adds its input and divides by
    ``sqrt(L)`` on top of a Xavier initialisation over three axes: its mixing term starts at about 1 % of the identity
    and hardly trains, so a model with it is close to one without a mixer. Here there is no inner residual and
    ``M ~ N(0, 1/L)``, which keeps the variance of independent tokens.

    Args:
        heads: number of matrices; the largest divisor of ``dim`` that divides 8 where absent.
        published: the published form ``y = x + M x / sqrt(L)`` and its initialisation, for its checkpoints.
    """

    traits = Traits(length="fixed", mask="content")

    def __init__(
        self, dim: int, grid: Grid | None = None, *, heads: int | None = None, published: bool = False
    ) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        self.heads = math.gcd(dim, 8) if heads is None else heads
        if dim % self.heads:
            raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads!r}")
        self.inner_residual = published
        length = math.prod(self.grid)
        self.M = nn.Parameter(torch.empty(self.heads, length, length))
        if published:
            nn.init.xavier_normal_(self.M)
        else:
            nn.init.normal_(self.M, std=length**-0.5)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = split_heads(x, self.heads)
        matrix: Matrix = DenseMatrix(self.M.unsqueeze(0))
        if self.inner_residual:
            matrix = DenseMatrix(self.M.unsqueeze(0) * x.shape[1] ** -0.5) + Identity.like(values)
        return Projected(matrix, values)

    def resize_(self, grid: Grid) -> Self:
        """Interpolate ``M`` over rows and columns; the sum of a row of the mixing matrix stays what it was."""
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        with torch.no_grad():
            resized = interpolate.mixing(self.M, old, self.grid)
            if self.inner_residual:
                resized = resized * (math.prod(self.grid) / math.prod(old)) ** 0.5
        self.M = nn.Parameter(resized, self.M.requires_grad)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}, published={self.inner_residual}"

    published: ClassVar[dict[str, Any]] = {
        "Thrillcrazyer/JustDense": lambda module, state: state,
        "goombalab/hydra": lambda module, state: state,
        # SpatialFc, the ablation of PoolFormer: one matrix for all channels, no residual.
        "sail-sg/poolformer": lambda module, state: {
            {"fc.weight": "M"}.get(name, name): value.unsqueeze(0) for name, value in state.items()
        },
    }


@register("spatial_fc", matrix=DenseMatrix, cost="O(L^2 D)", source="sail-sg/poolformer", paper="2111.11418, ablations")
class SpatialFc(Dense):
    """``y = M x`` with one free L x L matrix for all channels, no bias: an ablation of PoolFormer's pooling.

    ``dense`` with one head. The published matrix starts as a linear layer does, uniform within ``1 / sqrt(L)``; here
    ``M ~ N(0, 1/L)``, which keeps the variance of independent tokens.
    """

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid, heads=1)
