"""Hydra's matrix mixer framework: one block, any structure of the matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from matmix.matrices.base import Matrix
from matmix.matrices.cosine import Cosine
from matmix.matrices.dense import Dense
from matmix.matrices.quasiseparable import Quasiseparable
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Grid, Traits, merge_heads, split_heads
from matmix.mixers.cauchy import Reciprocals
from matmix.mixers.hydra import triangles
from matmix.mixers.low_rank import Scores
from matmix.mixers.matrix_block import Factors, Form, MatrixBlock, Signals, Structure
from matmix.mixers.registry import register
from matmix.mixers.toeplitz import Lags
from matmix.mixers.vandermonde import Cosines
from matmix.ops import interpolate
from matmix.ops.state_space import add_dynamics


class Free(Structure):
    """One free matrix a head, over ``sqrt(L)``, learned."""

    name: ClassVar = "dense"
    ways: ClassVar = (False,)
    needs_qk: ClassVar = False

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        assert grid is not None
        self.M = self._draw(heads, math.prod(grid), math.prod(grid))

    def forward(self, signals: Signals) -> Matrix:
        return Dense(self.M.unsqueeze(0) * signals.size**-0.5)

    def resize_(self, old: Grid, new: Grid) -> None:
        """Interpolate rows and columns; the sum of a row of the mixing matrix stays what it was."""
        moved = interpolate.mixing(self.M.detach(), old, new) * (math.prod(new) / math.prod(old)) ** 0.5
        self.M = nn.Parameter(moved, self.M.requires_grad)


class RealFourier(Structure):
    """``M[i, j] = cos(2 pi i j / L) / sqrt(L)``, over an image ``cos(2 pi (i_1 j_1 / n_1 + i_2 j_2 / n_2))``: fixed."""

    name: ClassVar = "dft"
    ways: ClassVar = (False,)
    needs_qk: ClassVar = False

    @classmethod
    def promise(cls, form: Form) -> Traits:
        return Traits(mask="content")

    def forward(self, signals: Signals) -> Matrix:
        grid = signals.context.grid
        return Cosine.like(signals.values, grid, math.prod(grid) ** -0.5)

    published: ClassVar[dict[str, Any]] = {  # the matrix is stored there, and named for the class it belongs to
        "goombalab/hydra": lambda module, state: {k: v for k, v in state.items() if k != "dft_matrix"}
    }


class Attention(Factors):
    """``M[i, j] = softmax_j(q_i . k_j / sqrt(qk_dim))``.

    Learned q and k are of shape (L, H, qk_dim). The published code reads them as (H, L, qk_dim), and so runs only
    where L = H.
    """

    name: ClassVar = "attention"
    scaled: ClassVar = False

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        self._check(grid)

    def _check(self, grid: Grid | None) -> None:
        if self.form.published and not self.form.data_dependent and (grid is None or math.prod(grid) != self.heads):
            raise ValueError(
                f"published=True: the published learned attention runs only on as many tokens as heads "
                f"({self.heads}), got the grid {grid}"
            )

    def resize_(self, old: Grid, new: Grid) -> None:
        self._check(new)
        super().resize_(old, new)

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        if self.form.published and not self.form.data_dependent:
            query, key = query.transpose(1, 2), key.transpose(1, 2)
        return Softmax(query, key, mask)


class BothWays(Structure):
    """Hydra's matrix, with one B and one C of ``H qk_dim`` states for all heads and for both directions.

    Learned B and C come with learned steps, one a head. The diagonal ``D + fc_D v_i`` depends on the token even then.
    """

    name: ClassVar = "quasiseparable"
    activated: ClassVar = True
    residual: ClassVar = False
    scaled: ClassVar = False
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        self.d_state = heads * qk_dim
        if form.data_dependent:
            self.streams, self.raw = (self.d_state, self.d_state), 2 * heads
        else:
            assert grid is not None
            self.BC = self._draw(math.prod(grid), 2 * self.d_state)
        add_dynamics(self, heads)
        self.fc_D = nn.Linear(heads * width, heads, bias=False)

    @classmethod
    def promise(cls, form: Form) -> Traits:
        return replace(super().promise(form), data_dependent=True)

    def forward(self, signals: Signals) -> Matrix:
        streams, raw, mask = signals.streams, signals.raw, signals.context.mask
        if not self.form.data_dependent:
            streams, raw = self.BC.to(streams.dtype).unsqueeze(0), raw.new_zeros(1, raw.shape[1], 2 * self.heads)
        inputs, outputs = (split_heads(part, 1) for part in streams.split(self.d_state, -1))
        lower, upper = triangles(self, (outputs, inputs), (outputs, inputs), raw, mask)
        return Quasiseparable(lower, upper, (self.fc_D(merge_heads(signals.values)) + self.D).mT)

    def resize_(self, old: Grid, new: Grid) -> None:
        """Interpolate B and C along the tokens."""
        if not self.form.data_dependent:
            self.BC = nn.Parameter(interpolate.positions(self.BC.detach(), 0, old, new), self.BC.requires_grad)


STRUCTURES: dict[str, type[Structure]] = {
    structure.name: structure
    for structure in (Free, Lags, Cosines, RealFourier, Reciprocals, Scores, Attention, BothWays)
}


@register(
    "matrix_mixer",
    matrix="Quasiseparable per head; other structures + Identity",
    cost="O(L D H qk_dim + L D dim); that of the structure",
    source="goombalab/hydra",
    paper="2407.09941, section 2, tables 1 and 2",
    smallest={"head_dim": 4, "d_conv": 3},
)
class MatrixMixer(MatrixBlock):
    """``y = W_o (norm(M v + v) silu(z))``: Hydra's block with the structure of M as an option.

    Args:
        structure: of M (each with its formula): ``"dense"`` (:class:`Free`), ``"toeplitz"`` (:class:`Lags`),
            ``"vandermonde"`` (:class:`Cosines`), ``"dft"`` (:class:`RealFourier`, published as the Vandermonde that is
            not data-dependent), ``"cauchy"`` (:class:`Reciprocals`), ``"low_rank"`` (:class:`Scores`), ``"attention"``
            (:class:`Attention`), ``"quasiseparable"`` (:class:`BothWays`, without the identity).

    The other options are those of :class:`MatrixBlock`.
    """

    traits = BothWays.promise(Form())

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        structure: Literal[
            "quasiseparable", "dense", "toeplitz", "vandermonde", "dft", "cauchy", "low_rank", "attention"
        ] = "quasiseparable",
        data_dependent: bool | None = None,
        published: bool = False,
        expand: float = 2,
        head_dim: int | None = None,
        qk_dim: int | None = None,
        d_conv: int = 7,
        bias: bool = False,
        conv_bias: bool = True,
        max_len: int | None = None,
    ) -> None:
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, got {structure!r}")
        self.structure = STRUCTURES[structure]
        super().__init__(
            dim,
            grid,
            data_dependent=data_dependent,
            published=published,
            expand=expand,
            head_dim=head_dim,
            qk_dim=qk_dim,
            d_conv=d_conv,
            bias=bias,
            conv_bias=conv_bias,
            max_len=max_len,
        )
