"""Low rank: scores without softmax, feature map or normaliser."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from matmix.matrices.base import Matrix
from matmix.matrices.low_rank import LowRank as LowRankMatrix
from matmix.mixers.matrix_mixer import MatrixMixer
from matmix.mixers.registry import register


@register(
    "low_rank",
    matrix="LowRank + Identity per head",
    cost="O(L D (qk_dim + dim))",
    source="goombalab/hydra",
    paper="2407.09941, table 1",
    smallest={"qk_dim": 3, "headdim": 4, "d_conv": 3},
)
class LowRank(MatrixMixer):
    """``M[i, j] = q_i . k_j / sqrt(L qk_dim)`` in Hydra's block; q and k go through SiLU. See :class:`MatrixMixer`."""

    activates_queries: ClassVar[bool] = True

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float) -> Matrix:
        return LowRankMatrix(query * (size * self.qk_dim) ** -0.5, key)
