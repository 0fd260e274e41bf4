"""Cauchy: every pair of tokens meets in a reciprocal of a sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.matrices.base import Matrix
from matmix.matrices.cauchy import Cauchy as CauchyMatrix
from matmix.mixers.matrix_mixer import MatrixMixer
from matmix.mixers.registry import register
from matmix.ops.precision import full_precision, working_dtype

LARGE = 40.0  # 1 / exp(40) is below rounding; past exp(88) float32 is infinite, and its gradient not a number


@register(
    "cauchy",
    matrix="Cauchy + Identity per head",
    cost="O(L^2 H qk_dim + L^2 D)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"qk_dim": 3, "headdim": 4, "d_conv": 3},
)
class Cauchy(MatrixMixer):
    """``M[i, j] = sum_d 1 / (exp q_{i,d} + exp k_{j,d} + 2 c) / sqrt(L qk_dim)`` in Hydra's block.

    As coded: the paper writes a difference, which has poles. c is learned and starts at 1/2. See :class:`MatrixMixer`.
    """

    def add_parameters(self) -> None:
        self.bias = nn.Parameter(torch.tensor(0.5))

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float) -> Matrix:
        exact = working_dtype(query)
        with full_precision(query.device):
            # 1 / ((p + q) / s) = s / (p + q): the scale costs nothing on the points.
            scale = (size * self.qk_dim) ** 0.5
            rows = scale * (query.to(exact).clamp(max=LARGE).exp() + self.bias)
            columns = scale * (key.to(exact).clamp(max=LARGE).exp() + (self.bias + 1e-8))
        return CauchyMatrix(rows.to(query.dtype), columns.to(key.dtype))
