"""Cauchy: every pair of tokens meets in a reciprocal of a sum."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from matmix.matrices.base import Matrix
from matmix.matrices.cauchy import Cauchy as CauchyMatrix
from matmix.mixers.base import Grid
from matmix.mixers.matrix_block import Factors, Form, MatrixBlock
from matmix.mixers.registry import register
from matmix.ops.precision import full_precision, working_dtype

LARGE = 40.0  # 1 / exp(40) is below rounding; past exp(88) float32 is infinite, and its gradient not a number


class Reciprocals(Factors):
    """``M[i, j] = sum_d 1 / (exp q_{i,d} + exp k_{j,d} + 2 c) / sqrt(L qk_dim)``; c is 0 where q and k are learned."""

    name: ClassVar = "cauchy"

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        self.bias = nn.Parameter(torch.tensor(0.5)) if form.data_dependent else None

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        exact, bias = working_dtype(query), 0.0 if self.bias is None else self.bias
        with full_precision(query.device):
            # 1 / ((p + q) / s) = s / (p + q): the scale costs nothing on the points.
            scale = (size * self.qk_dim) ** 0.5
            rows = scale * (query.to(exact).clamp(max=LARGE).exp() + bias)
            columns = scale * (key.to(exact).clamp(max=LARGE).exp() + (bias + 1e-8))
        return CauchyMatrix(rows.to(query.dtype), columns.to(key.dtype))

    def _rescaled(self, weight: Tensor, ratio: float) -> Tensor:
        return weight + 0.5 * math.log(ratio)  # the sum of a row stays what it was


@register(
    "cauchy",
    matrix="Cauchy + Identity per head",
    cost="O(L^2 H qk_dim + L^2 D)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"qk_dim": 3, "head_dim": 4, "d_conv": 3},
)
class Cauchy(MatrixBlock):
    """``M[i, j] = sum_d 1 / (exp q_{i,d} + exp k_{j,d} + 2 c) / sqrt(L qk_dim)`` in Hydra's block.

    As coded: the paper writes a difference, which has poles. c is learned and starts at 1/2; learned q and k have
    none, as in the code. See :class:`MatrixBlock`.
    """

    structure = Reciprocals
    traits = Reciprocals.promise(Form())
