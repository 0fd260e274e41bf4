"""Mean matrix: what a mixer does on average, frozen; the control for what looking at the data is worth."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.dense import Dense
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, split_heads
from matmix.mixers.registry import register
from matmix.ops import interpolate


@register("mean_matrix", matrix=Dense, cost="O(L^2 D)", source="a control", paper="")
class MeanMatrix(Mixer):
    """``y = M x`` with one frozen matrix a head, a buffer; uniform until an average is written into it.

    ``matmix.surgery.replace(model, "mean_matrix(heads=3)", batches=...)`` writes the average of the old matrix over
    data. The projections of the old mixer go: with ``level="matrix"`` they stay.

    Args:
        heads: number of matrices, those of the old mixer.
    """

    traits = Traits(length="fixed", mask="content")
    entries: Tensor  # (H, L, L)

    def __init__(self, dim: int, grid: Grid | None = None, *, heads: int = 1) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        if dim % heads:
            raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads!r}")
        self.heads, length = heads, math.prod(self.grid)
        self.register_buffer("entries", torch.full((heads, length, length), 1 / length))

    def project(self, x: Tensor, context: Context) -> Projected:
        values = split_heads(drop_padding(x, context.mask), self.heads)
        return Projected(Dense(self.entries.unsqueeze(0)), values)

    def resize_(self, grid: Grid) -> Self:
        """Interpolate rows and columns; the sum of a row stays what it was."""
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        self.entries = interpolate.mixing(self.entries, old, self.grid)
        return self
