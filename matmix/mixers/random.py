"""Random mixing: a frozen random matrix, the control for what mixing at all is worth."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.dense import Dense
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops import interpolate


@register("random", matrix=Dense, cost="O(L^2 D)", source="sail-sg/metaformer", paper="2210.13452, section 2.2")
class RandomMixing(Mixer):
    """``y = R x`` with one frozen row-stochastic matrix for all channels (RandFormer).

    ``R`` is the softmax over the rows of uniform numbers in [0, 1), so every row is close to the mean of all tokens.
    It is a buffer: saved with the weights, never trained. The published code keeps it as a parameter without
    gradient, under the same name.
    """

    traits = Traits(length="fixed", mask="content")
    random_matrix: Tensor

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        length = math.prod(self.grid)
        self.register_buffer("random_matrix", torch.rand(length, length).softmax(-1))

    def project(self, x: Tensor, context: Context) -> Projected:
        return Projected(Dense(self.random_matrix[None, None]), x.unsqueeze(1))

    def resize_(self, grid: Grid) -> Self:
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        self.random_matrix = interpolate.mixing(self.random_matrix, old, self.grid)
        return self

    published: ClassVar[dict[str, Any]] = {"sail-sg/metaformer": lambda module, state: state}
