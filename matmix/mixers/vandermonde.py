"""Vandermonde: every token sets the frequencies at which it reads the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import Scale, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.vandermonde import Vandermonde as VandermondeMatrix
from matmix.mixers.base import Traits
from matmix.mixers.matrix_block import Factors, Form, MatrixBlock
from matmix.mixers.registry import register

ANGLE = 1e-3  # turns a token and unit of q, as published


class Cosines(Factors):
    """``M[i, j] = sum_d cos(2 pi e q_{i,d} j) - cos(2 pi e k_{j,d} i)``, over ``sqrt(2 L qk_dim)``, e = 1e-3.

    Learned q and k are frequencies in turns a token: e = 1, the cosines are added, and they start anywhere between
    -1/2 and 1/2. The published code starts them at 0, where no cosine has a gradient, and sums a row of M over its
    columns before the values meet it: its learned matrix is diagonal, and mixes nothing.
    """

    name: ClassVar = "vandermonde"

    @classmethod
    def promise(cls, form: Form) -> Traits:
        return replace(super().promise(form), mask="content")  # positions count from the start, padding included

    def _draw(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape) if self.form.published else torch.rand(shape) - 0.5)

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        unit, sign = (ANGLE, -1.0) if self.form.data_dependent else (1.0, 1.0)
        length = query.shape[2]
        rows, columns = (VandermondeMatrix(unit * t, length) for t in (query, key))
        both: Matrix = Sum((rows, columns.mT.scale(sign)))
        gain = (2 * size * self.qk_dim) ** -0.5
        # One number is a tensor too where torch.jit traces a length.
        factor = gain if isinstance(gain, Tensor) and gain.dim() else query.new_ones(1, 1, 1, 1) * gain
        if self.form.published and not self.form.data_dependent:
            return Diagonal((factor * both.matmul(query.new_ones(1, self.heads, length, 1))).squeeze(-1))
        return Scale(both, factor)

    def _rescaled(self, weight: Tensor, ratio: float) -> Tensor:
        return weight / ratio  # as many turns over the whole length

    @staticmethod
    def _from_published(module: Cosines, state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"q_bias": "q_matrix", "k_bias": "k_matrix"}  # (H, qk, L) there
        return {names[name]: value.permute(2, 0, 1) for name, value in state.items()}

    published: ClassVar[dict[str, Any]] = {"goombalab/hydra": _from_published}


@register(
    "vandermonde",
    matrix="Vandermonde - Vandermonde^T + Identity per head",
    cost="O(L^2 H qk_dim + L^2 D)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"qk_dim": 3, "head_dim": 4, "d_conv": 3},
)
class Vandermonde(MatrixBlock):
    """``M[i, j] = sum_d cos(2 pi e q_{i,d} j) - cos(2 pi e k_{j,d} i)``, over ``sqrt(2 L qk_dim)``, in Hydra's block.

    e is 1e-3. Learned q and k are frequencies, and their cosines are added (see :class:`Cosines` for what the
    published code does instead). Positions count from the start of the sequence, padding included, so a sequence that
    is padded on the left is another one. See :class:`MatrixBlock`.
    """

    structure = Cosines
    traits = Cosines.promise(Form())
