"""Vandermonde: every token sets the frequencies at which it reads the others."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from matmix.matrices.algebra import Scale, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.vandermonde import Vandermonde as VandermondeMatrix
from matmix.mixers.matrix_mixer import MatrixMixer
from matmix.mixers.registry import register

ANGLE = 1e-3  # turns a token and unit of q, as published


@register(
    "vandermonde",
    matrix="Vandermonde - Vandermonde^T + Identity per head",
    cost="O(L^2 H qk_dim + L^2 D)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"qk_dim": 3, "headdim": 4, "d_conv": 3},
)
class Vandermonde(MatrixMixer):
    """``M[i, j] = sum_d cos(2 pi e q_{i,d} j) - cos(2 pi e k_{j,d} i)``, over ``sqrt(2 L qk_dim)``, in Hydra's block.

    e is 1e-3. Positions count from the start of the sequence, padding included, so a sequence that is padded on the
    left is another one. See :class:`MatrixMixer`.
    """

    traits = replace(MatrixMixer.traits, mask="content")

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float) -> Matrix:
        length = query.shape[2]
        rows = VandermondeMatrix(ANGLE * query, length)
        columns = VandermondeMatrix(ANGLE * key, length).mT
        gain = (2 * size * self.qk_dim) ** -0.5
        factor = gain if isinstance(gain, Tensor) else query.new_full((1, 1, 1, 1), gain)
        return Scale(Sum((rows, columns.scale(-1.0))), factor)
