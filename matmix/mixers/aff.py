"""Adaptive frequency filter: a frequency response computed from the tokens' own spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.circulant import Circulant
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.registry import register
from matmix.ops.precision import full_precision, working_dtype

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
    mixer's own skip is in it.

    The activation acts on real and imaginary parts apart, so m is not a real kernel's spectrum where it must mirror
    itself; it is projected, which is what the published code computes on a CPU. The published code casts to float32;
    here float64 stays. Its constructor argument for the threshold is ignored there; here it is ``shrink``.

    Args:
        groups: channel groups; must divide ``dim`` (8 in AFFNet).
        expand: hidden width of a group over its width.
        activation: ``"silu"`` (the released models, by report), ``"relu"`` (the paper's figure) or ``"gelu"``.
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
        expand: float = 1.0,
        activation: str = "silu",
        shrink: float = 0.01,
    ) -> None:
        super().__init__(dim, grid)
        if not isinstance(groups, int) or groups < 1 or dim % groups:
            raise ValueError(f"groups must be a positive divisor of dim={dim}, got {groups!r}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        if shrink < 0:
            raise ValueError(f"shrink must be at least 0, got {shrink!r}")
        width = dim // groups
        hidden = int(width * expand)
        if hidden < 1:
            raise ValueError(f"expand must leave a hidden width of at least 1, got {expand!r} of {width} channels")
        self.groups, self.activation, self.shrink = groups, activation, shrink
        # The first axis holds real and imaginary part.
        self.w1 = nn.Parameter(0.02 * torch.randn(2, groups, width, hidden))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, groups, hidden))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, groups, hidden, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, groups, width))

    def project(self, x: Tensor, context: Context) -> Projected:
        values = drop_padding(x, context.mask).mT.unsqueeze(-1)
        maps = values.squeeze(-1).to(working_dtype(x)).unflatten(-1, context.grid)
        with full_precision(x.device):
            spectrum = torch.fft.rfftn(maps, dim=tuple(range(2, maps.dim())), norm="ortho")
            eigenvalues = 1 + self._mask(spectrum.flatten(2)).view_as(spectrum)
            matrix = Circulant.from_spectrum(eigenvalues, context.grid)
        return Projected(matrix, values)

    def _mask(self, spectrum: Tensor) -> Tensor:
        """Complex ``(B, D, K)`` to complex ``(B, D, K)``: the two layers, each as one real product over [re; im]."""
        batch, dim, count = spectrum.shape
        pairs = torch.cat([spectrum.real, spectrum.imag], 1).view(batch, 2, self.groups, dim // self.groups, count)
        hidden = _ACTIVATIONS[self.activation](_layer(pairs, self.w1, self.b1))
        mask = F.softshrink(_layer(hidden, self.w2, self.b2), self.shrink)
        real, imaginary = mask.reshape(batch, 2, dim, count).unbind(1)
        return torch.complex(real, imaginary)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return merge_heads(mixed)

    def extra_repr(self) -> str:
        options = f"groups={self.groups}, activation={self.activation!r}, shrink={self.shrink}"
        return f"{super().extra_repr()}, {options}"


def _layer(pairs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex linear map of every group: ``(B, 2, G, I, K)`` to ``(B, 2, G, O, K)``."""
    weight, bias = weight.to(pairs.dtype), bias.to(pairs.dtype)
    real, imaginary = weight.unbind(0)
    # rows: output part and channel; columns: input part and channel
    block = torch.stack([torch.stack([real, -imaginary]), torch.stack([imaginary, real])])  # (out, in, G, I, O)
    return torch.einsum("qpgio,bpgik->bqgok", block, pairs) + bias.unsqueeze(-1)
