"""Toeplitz: one weight a lag and head, learned or made from the tokens, in Hydra's block."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.toeplitz import CausalToeplitz, two_sided
from matmix.matrices.toeplitz import Toeplitz as ToeplitzMatrix
from matmix.mixers.base import Grid, Traits
from matmix.mixers.matrix_block import Form, MatrixBlock, Signals, Structure
from matmix.mixers.registry import register
from matmix.ops.sizes import modulo


class Lags(Structure):
    """``M[i, j] = t_(i-j) / (2 sqrt(L))``.

    Where the taps come from the tokens, token k gives the tap of lag k and that of lag -k (SiLU of a convolved
    projection), so the matrix has any length; learned taps have the length they were built for, and ``resize_`` keeps
    every lag that stays and starts new ones at zero.

    The published code shifts the matrix by one, ``M[i, j] = t_(i-j+1)``, wraps the missing tap of the corner to the
    most negative lag, and its data-dependent form runs at one length only.
    """

    name: ClassVar = "toeplitz"
    needs_qk: ClassVar = False
    activated: ClassVar = True

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        if form.published and form.causal:
            raise ValueError("published=True reproduces a matrix that looks ahead, which causal=True rules out")
        if form.data_dependent:
            self.streams = (heads * (2 - form.causal),)
            return
        assert grid is not None
        self.length = math.prod(grid)
        taps = torch.empty(heads, self.length if form.causal else 2 * self.length - 1)
        self.conv_params = nn.Parameter((nn.init.xavier_uniform_ if form.published else nn.init.normal_)(taps))

    @classmethod
    def promise(cls, form: Form) -> Traits:
        return Traits(
            causal=form.causal,
            data_dependent=form.data_dependent,
            length="any" if form.data_dependent else "fixed",
            mask="trim" if form.data_dependent and not form.published else "content",
            aligned=form.data_dependent and form.causal and form.max_len is not None,
        )

    def forward(self, signals: Signals) -> Matrix:
        if self.form.data_dependent:
            return self.from_tokens(signals.streams, signals.size, signals.context.mask)
        return self.learned(signals.values.dtype)

    def from_tokens(self, taps: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        """M from taps ``(B, L, 2 H)``: those of the lags 0, 1, ..., then those of the lags 0, -1, ... ."""
        if mask is not None:
            # The first real token gives lag 0, wherever it stands.
            first = mask.int().argmax(1, keepdim=True)
            order = modulo(torch.arange(taps.shape[1], device=taps.device) + first, taps.shape[1])
            taps = taps.gather(1, order.unsqueeze(-1).expand_as(taps))
        return self._scaled(taps.mT, size.squeeze(-1) if isinstance(size, Tensor) else size)

    def learned(self, dtype: torch.dtype) -> Matrix:
        """M from ``conv_params``."""
        taps = self.conv_params.to(dtype).unsqueeze(0)
        if self.form.causal:
            return self._scaled(taps, float(self.length))
        # Both halves from lag 0 outwards.
        behind, ahead = taps[..., self.length - 1 :], taps[..., : self.length].flip(-1)
        return self._scaled(torch.cat([behind, ahead], 1), float(self.length))

    def _scaled(self, taps: Tensor, size: Tensor | float) -> Matrix:
        """M from taps ``(B or 1, 2 H, L)`` (causal: ``(B or 1, H, L)``) of the lags outwards from 0."""
        taps = taps * (0.5 / size**0.5)
        if self.form.causal:
            return CausalToeplitz(taps)
        behind, ahead = taps.chunk(2, 1)
        lags = two_sided(ahead, behind[..., :1], behind)
        return ToeplitzMatrix(lags.roll(-1, -1) if self.form.published else lags)

    def resize_(self, old: Grid, new: Grid) -> None:
        """Keep the entries of M at every lag that both lengths have; new ones are zero."""
        before, after = math.prod(old), math.prod(new)
        if not self.form.data_dependent and before != after:
            more, weights = after - before, self.conv_params.detach()
            # A negative pad crops; the matrix is scaled by the new length from now on.
            weights = F.pad(weights, (0 if self.form.causal else more, more)) * math.sqrt(after / before)
            self.conv_params = nn.Parameter(weights, self.conv_params.requires_grad)
            self.length = after


@register(
    "toeplitz",
    matrix="Toeplitz + Identity per head",
    cost="O(L D log L + L D^2)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"head_dim": 4, "d_conv": 3},
)
class Toeplitz(MatrixBlock):
    """``y = W_o (norm(M v + v) silu(z))`` with ``M[i, j] = t_(i-j) / (2 sqrt(length))``; an image row by row.

    Hydra's block (:class:`MatrixBlock`) with one tap a lag and head (:class:`Lags`).

    Args:
        data_dependent: taps from the tokens, else learned.
        causal: lags from 0 on only, and a convolution that looks back.
        published: the shift of the published code, for its checkpoints; not with ``causal``.
        expand, head_dim, d_conv, bias, conv_bias: of the block.
        max_len: the length that scales M where the taps are data-dependent; None is the number of real tokens.
    """

    structure = Lags
    traits = Lags.promise(Form())

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        data_dependent: bool = True,
        causal: bool = False,
        published: bool = False,
        expand: float = 2,
        head_dim: int | None = None,
        d_conv: int = 7,
        bias: bool = False,
        conv_bias: bool = True,
        max_len: int | None = None,
    ) -> None:
        self.causal = causal
        super().__init__(
            dim,
            grid,
            data_dependent=data_dependent,
            published=published,
            expand=expand,
            head_dim=head_dim,
            d_conv=d_conv,
            bias=bias,
            conv_bias=conv_bias,
            max_len=max_len,
        )
