"""Adaptive frequency filter: a frequency response computed from the tokens' own spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.circulant import Circulant
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads
from matmix.mixers.registry import register
from matmix.ops import fft
from matmix.ops.fft import complex_linear, hermitian
from matmix.ops.pieces import pieces
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.state_space import inner_width

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


@register(
    "aff",
    matrix="Circulant per channel and sample",
    cost="O(L D (log L + D / groups))",
    source="microsoft/TokenMixers",
    paper="2307.14008, equation 4",
    smallest={"groups": 2},
)
class AFF(Mixer):
    """``y = x + F^-1 (m(F x) * F x)``: AFFNet's token mixer, a convolution whose kernel is made from the tokens.

    At every frequency a complex two-layer network, block-diagonal over ``groups`` of channels and shared by all
    frequencies, turns the channels' coefficients (orthonormal DFT) into a mask; softshrink sets its small entries to
    zero. The matrix is circulant per sample and channel, with the eigenvalues ``1 + m``: the
    mixer's own skip is in it. The transform that the mask is made from also serves the product.

    The activation acts on real and imaginary parts apart, so m is not a real kernel's spectrum where it must mirror
    itself; it is projected, which is what the published code computes on a CPU. The published code casts to float32;
    here float64 stays. Its constructor argument for the threshold is ignored there; here it is ``shrink``.

    Args:
        groups: channel groups; must divide ``dim`` (8 in AFFNet).
        mlp_ratio: hidden width of a group over its width.
        act: the activation, ``"silu"`` (the released models, by report), ``"relu"`` (the paper's figure) or ``"gelu"``.
        shrink: threshold of the softshrink, at least 0.
    """

    traits = Traits(data_dependent=True, mask="content")
    published: ClassVar = {"microsoft/TokenMixers": lambda module, state: state}

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        groups: int = 8,
        mlp_ratio: float = 1.0,
        act: Literal["silu", "relu", "gelu"] = "silu",
        shrink: float = 0.01,
    ) -> None:
        super().__init__(dim, grid)
        if dim % groups:
            raise ValueError(f"groups must be a positive divisor of dim={dim}, got {groups!r}")
        width = dim // groups
        hidden = inner_width(width, mlp_ratio, "mlp_ratio")
        self.groups, self.act, self.shrink = groups, act, shrink
        # The first axis holds real and imaginary part.
        self.w1 = nn.Parameter(0.02 * torch.randn(2, groups, width, hidden))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, groups, hidden))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, groups, hidden, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, groups, width))

    def project(self, x: Tensor, context: Context) -> Projected:
        maps = self._maps(x, context)
        with full_precision(x.device):
            _, eigenvalues = self._eigenvalues(maps, context.grid)
        return Projected(Circulant(torch.view_as_real(eigenvalues), context.grid), maps.flatten(2).unsqueeze(-1))

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        # The transform that the eigenvalues are made from is the first half of the product.
        done = [self._filtered(piece, context.grid) for piece in pieces(self._maps(x, context), self, 2.0)]
        return (torch.cat(done) if len(done) > 1 else done[0]).flatten(2).unsqueeze(-1), None

    def _maps(self, x: Tensor, context: Context) -> Tensor:
        """Channels ``(B, D, *grid)``: transforms along the last axes are the fast ones."""
        return x.mT.contiguous().unflatten(-1, context.grid)

    def _eigenvalues(self, maps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The half spectrum of ``(B, D, *grid)`` and the eigenvalues that are made from it."""
        spectrum = fft.rfftn(maps.to(working_dtype(maps)), dim=tuple(range(2, maps.dim())), norm="ortho")
        batch, dim = spectrum.shape[:2]
        pairs = torch.view_as_real(spectrum)
        modes = pairs.view(batch, self.groups, dim // self.groups, math.prod(spectrum.shape[2:]), 2)
        hidden = _ACTIVATIONS[self.act](complex_linear(modes, self.w1, self.b1))
        mask = F.softshrink(complex_linear(hidden, self.w2, self.b2), self.shrink)
        return spectrum, hermitian(torch.view_as_complex(mask.view_as(pairs)), grid).add_(1)

    def _filtered(self, maps: Tensor, grid: Grid) -> Tensor:
        with full_precision(maps.device):
            spectrum, eigenvalues = self._eigenvalues(maps, grid)
            mixed = fft.irfftn(spectrum * eigenvalues, grid, dim=tuple(range(2, maps.dim())), norm="ortho")
        return mixed.to(maps.dtype)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return merge_heads(mixed)

    def extra_repr(self) -> str:
        options = f"groups={self.groups}, act={self.act!r}, shrink={self.shrink}"
        return f"{super().extra_repr()}, {options}"
