"""Low rank: scores without softmax, feature map or normaliser."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from matmix.matrices.base import Matrix
from matmix.matrices.low_rank import LowRank as LowRankMatrix
from matmix.mixers.matrix_block import Factors, Form, MatrixBlock
from matmix.mixers.registry import register


class Scores(Factors):
    """``M[i, j] = q_i . k_j / sqrt(L qk_dim)``."""

    name: ClassVar = "low_rank"
    activated: ClassVar = True

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        return LowRankMatrix(query * (size * self.qk_dim) ** -0.5, key)

    def _rescaled(self, weight: Tensor, ratio: float) -> Tensor:
        return weight * ratio**-0.25  # the sum of a row stays what it was


@register(
    "low_rank",
    matrix="LowRank + Identity per head",
    cost="O(L D (qk_dim + dim))",
    source="goombalab/hydra",
    paper="2407.09941, table 1",
    smallest={"qk_dim": 3, "head_dim": 4, "d_conv": 3},
)
class LowRank(MatrixBlock):
    """``M[i, j] = q_i . k_j / sqrt(L qk_dim)`` in Hydra's block; q and k go through SiLU. See :class:`MatrixBlock`."""

    structure = Scores
    traits = Scores.promise(Form())
