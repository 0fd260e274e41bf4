"""Toeplitz: one weight a lag and head, learned or made from the tokens, in Hydra's block."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.identity import Identity
from matmix.matrices.toeplitz import CausalToeplitz
from matmix.matrices.toeplitz import Toeplitz as ToeplitzMatrix
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.state_space import head_width


@register(
    "toeplitz",
    matrix="Toeplitz + Identity per head",
    cost="O(L D log L + L D^2)",
    source="goombalab/hydra",
    paper="2407.09941, section 2.3",
    smallest={"headdim": 4, "d_conv": 3},
)
class Toeplitz(Mixer):
    """``y = W_o (norm(M v + v) silu(z))`` with ``M[i, j] = t_(i-j) / (2 sqrt(length))``; an image row by row.

    v goes through a short convolution and SiLU, as in all of Hydra's block; the end (RMS norm, gate) is not linear in
    the product. Where the taps are made from the tokens, token k gives the tap of lag k and that of lag -k (SiLU of a
    convolved projection), so the matrix has any length; learned taps have the length they were built for, and
    ``resize_`` keeps every lag that stays and starts new ones at zero.

    The published code shifts the matrix by one, ``M[i, j] = t_(i-j+1)``, wraps the missing tap of the corner to the
    most negative lag, and its data-dependent form runs at one length only; here lag 0 is on the diagonal.

    Args:
        data_dependent: taps from the tokens, else learned.
        causal: lags from 0 on only, and a convolution that looks back.
        published: the shift of the published code, for its checkpoints; not with ``causal``.
        expand: inner width over model width.
        headdim: width of a head; None is the largest divisor of ``expand * dim`` up to 64.
        d_conv: taps of the short convolution, odd unless causal.
        bias: biases of the input and output projections.
        conv_bias: bias of the convolution.
        max_len: the length that scales M where the taps are data-dependent; None is the number of real tokens.
            Published models keep the length that they were built for.
    """

    traits = Traits(data_dependent=True, mask="trim")
    published: ClassVar = {
        "goombalab/hydra": lambda module, state: {
            name.removeprefix("matrix_mixer."): value for name, value in state.items()
        }
    }

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        data_dependent: bool = True,
        causal: bool = False,
        published: bool = False,
        expand: int = 2,
        headdim: int | None = None,
        d_conv: int = 7,
        bias: bool = False,
        conv_bias: bool = True,
        max_len: int | None = None,
    ) -> None:
        self.traits = Traits(
            causal=causal,
            data_dependent=data_dependent,
            length="any" if data_dependent else "fixed",
            mask="trim" if data_dependent and not published else "content",
            aligned=data_dependent and causal and max_len is not None,
        )
        super().__init__(dim, grid)
        for name, value in (("expand", expand), ("max_len", 1 if max_len is None else max_len)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if published and causal:
            raise ValueError("published=True reproduces a matrix that looks ahead, which causal=True rules out")
        if max_len is not None and not data_dependent:
            raise ValueError(f"max_len={max_len} is for data-dependent taps; learned ones have the length of grid")
        inner = expand * dim
        self.heads = inner // head_width(inner, headdim, 1, "expand * dim")
        self.data_dependent, self.causal, self.shifted, self.max_len = data_dependent, causal, published, max_len
        self.sizes = (inner, self.heads * (2 - causal) if data_dependent else 0)
        self.in_proj = nn.Linear(dim, inner + sum(self.sizes), bias=bias)
        self.conv1d = ShortConv(sum(self.sizes), d_conv, causal=causal, bias=conv_bias)
        if not data_dependent:
            lags = self._length if causal else 2 * self._length - 1
            self.conv_params = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, lags)))
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    @property
    def _length(self) -> int:
        assert self.grid is not None
        return math.prod(self.grid)

    def project(self, x: Tensor, context: Context) -> Projected:
        mask = context.mask
        gate, inner = self.in_proj(x).split((self.sizes[0], sum(self.sizes)), -1)
        # Zeros at padding on both sides of the convolution, whose bias (and that of in_proj) would fill it.
        value, taps = drop_padding(F.silu(self.conv1d(drop_padding(inner, mask))), mask).split(self.sizes, -1)
        values = split_heads(value.contiguous(), self.heads)
        matrix = self._from_tokens(taps, mask) if self.data_dependent else self._learned(x.dtype)
        return Projected(Sum((matrix, Identity.like(values))), values, gate)

    def _from_tokens(self, taps: Tensor, mask: Tensor | None) -> Matrix:
        """M from taps ``(B, L, 2 H)``: those of the lags 0, 1, ..., then those of the lags 0, -1, ... ."""
        size: Tensor | float = float(self.max_len or taps.shape[1])
        if mask is not None:
            # The first real token gives lag 0, wherever it stands.
            first = mask.int().argmax(1, keepdim=True)
            order = (torch.arange(taps.shape[1], device=taps.device) + first) % taps.shape[1]
            taps = taps.gather(1, order.unsqueeze(-1).expand_as(taps))
            if self.max_len is None:
                size = mask.sum(1).clamp(min=1).to(taps.dtype)[:, None, None]
        return self._scaled(taps.mT, size)

    def _learned(self, dtype: torch.dtype) -> Matrix:
        taps = self.conv_params.to(dtype).unsqueeze(0)
        if self.causal:
            return self._scaled(taps, float(self._length))
        # Both halves from lag 0 outwards.
        behind, ahead = taps[..., self._length - 1 :], taps[..., : self._length].flip(-1)
        return self._scaled(torch.cat([behind, ahead], 1), float(self._length))

    def _scaled(self, taps: Tensor, size: Tensor | float) -> Matrix:
        """M from taps ``(B or 1, 2 H, L)`` (causal: ``(B or 1, H, L)``) of the lags outwards from 0."""
        taps = taps * (0.5 / size**0.5)
        if self.causal:
            return CausalToeplitz(taps)
        behind, ahead = taps.chunk(2, 1)
        lags = torch.cat([ahead[..., 1:].flip(-1), behind], -1)
        return ToeplitzMatrix(lags.roll(-1, -1) if self.shifted else lags)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return self.out_proj(self.norm(merge_heads(mixed), rest))

    def resize_(self, grid: Grid) -> Self:
        """Note the grid; learned taps keep the entries of M at every lag that both lengths have, new ones are zero."""
        old = None if self.data_dependent else self._length
        super().resize_(grid)
        if old is not None and self._length != old:
            more, weights = self._length - old, self.conv_params.detach()
            # A negative pad crops; the matrix is scaled by the new length from now on.
            weights = F.pad(weights, (0 if self.causal else more, more)) * math.sqrt(self._length / old)
            self.conv_params = nn.Parameter(weights, self.conv_params.requires_grad)
        return self

    def extra_repr(self) -> str:
        kind = "data-dependent" if self.data_dependent else "learned"
        return f"{super().extra_repr()}, heads={self.heads}, {kind} taps, causal={self.causal}"
