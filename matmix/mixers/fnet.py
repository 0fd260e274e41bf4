"""FNet: the Fourier transform as the token mixer."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from matmix.matrices.fourier import Fourier
from matmix.matrices.known import Known
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.ops.precision import working_dtype


@register(
    "fnet",
    matrix="Fourier, cosines and sines on two streams, one for all channels",
    cost="O(L D log(L D))",
    source="google-research/google-research",
    paper="2105.03824, equation 3",
)
class FNet(Mixer):
    """``y = Re(F_L x F_D)``: the real part of the DFT over tokens and channels; no parameters.

    With ``F = C - i S`` and ``Z = x F_D`` that is ``C_L Re Z + S_L Im Z``: the matrix of cosines and sines on the
    real and imaginary parts of the channels' transform. On an image the token transform is the 2-D one.

    The output is even over tokens and channels together, so half of the channels are transformed over the tokens, and
    ``merge`` mirrors them into the other half.

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
        x, norm = drop_padding(x, context.mask), "ortho" if self.norm == "ortho" else "backward"
        # Transforms run over the last axes: they are several times as fast there as over inner ones.
        half = torch.fft.rfft(x.to(working_dtype(x)), norm=norm).mT.contiguous()  # (B, D // 2 + 1, L)
        values = torch.view_as_real(half).flatten(2).unsqueeze(-1)
        axes = tuple(range(2, 2 + len(context.grid)))
        product = torch.fft.fftn(half.unflatten(2, context.grid), dim=axes, norm=norm).real.flatten(2).unsqueeze(-1)
        gain = 1 / math.sqrt(x.shape[1]) if self.norm == "ortho" else 1.0
        return Projected(Known(Fourier.like(values, context.grid, gain, pairs=True), values, product), values, context)

    def merge(self, mixed: Tensor, rest: Context) -> Tensor:
        half = mixed.squeeze(-1).mT.contiguous()
        # Channel D - d at token k is channel d at token -k.
        back = torch.zeros((), dtype=torch.long, device=mixed.device)
        for size in rest.grid:
            back = back.unsqueeze(-1) * size + -torch.arange(size, device=mixed.device) % size
        other = half.narrow(2, 1, (self.dim - 1) // 2).flip(2)
        return torch.cat((half, other.index_select(1, back.flatten())), 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}"
