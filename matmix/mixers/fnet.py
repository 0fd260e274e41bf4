"""FNet: the Fourier transform as the token mixer."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from matmix.matrices.fourier import Fourier
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.ops.precision import working_dtype


@register(
    "fnet",
    matrix="Fourier, [C, -S] on two streams, one for all channels",
    cost="O(L D log(L D))",
    source="google-research/google-research",
    paper="2105.03824, equation 3",
)
class FNet(Mixer):
    """``y = Re(F_L x F_D)``: the real part of the DFT over tokens and channels; no parameters.

    With ``F = C - i S`` that is ``C_L (x C_D) - S_L (x S_D)``: the matrix ``[C_L, -S_L]`` on the values
    ``[x C_D; x S_D]``. On an image the token transform is the 2-D one. The values come from a real FFT over the
    channels, and the matrix takes the Hermitian half of its input only, so no transform is done twice.

    The published code mixes padding in; with a mask, padded tokens count as zeros here (the DFT still has the padded
    length, so the output is not that of the trimmed sequence).

    Args:
        norm: ``"none"`` as published: outputs are sqrt(L D) times the size of the inputs, which suits a norm after
            the residual sum (FNet's) and swamps the residual stream of a pre-norm model; ``"ortho"`` divides by it.
    """

    traits = Traits(mask="content")
    published: ClassVar = {
        "google-research/google-research": lambda module, state: state,
        "lxchtan/PoNet": lambda module, state: state,
    }

    def __init__(self, dim: int, grid: Grid | None = None, *, norm: Literal["none", "ortho"] = "none") -> None:
        super().__init__(dim, grid)
        if norm not in ("none", "ortho"):
            raise ValueError(f"norm must be 'none' or 'ortho', got {norm!r}")
        self.norm = norm

    def project(self, x: Tensor, context: Context) -> Projected:
        x = drop_padding(x, context.mask)
        half = torch.fft.rfft(x.to(working_dtype(x)))
        # The other half of the channels: x C_D is even in the channel, x S_D is odd.
        back = half.narrow(-1, 1, (self.dim - 1) // 2).flip(-1)
        cosine, sine = torch.cat([half.real, back.real], -1), torch.cat([-half.imag, back.imag], -1)
        values = torch.cat([cosine, sine], 1).unsqueeze(1)
        gain = 1 / math.sqrt(math.prod(context.grid) * self.dim) if self.norm == "ortho" else 1.0
        return Projected(Fourier.like(values, context.grid, gain), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}"
