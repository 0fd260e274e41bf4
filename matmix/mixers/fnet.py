"""FNet: the Fourier transform as the token mixer."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from matmix.matrices.fourier import Fourier
from matmix.matrices.known import Known
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
        grid, norm = context.grid, "ortho" if self.norm == "ortho" else "backward"
        x = drop_padding(x, context.mask)
        x = x.to(working_dtype(x))
        half = _over_channels(x, self.dim, norm)
        values = torch.view_as_real(half).flatten(2).unsqueeze(-1)
        product = _Half.apply(x, half.detach(), grid, norm).unsqueeze(-1)
        gain = 1 / math.sqrt(x.shape[1]) if self.norm == "ortho" else 1.0
        return Projected(Known(Fourier.like(values, grid, gain, pairs=True), values, product), values, grid)

    def merge(self, mixed: Tensor, rest: Grid) -> Tensor:
        return _mirrored(mixed.squeeze(-1), self.dim, rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}"


def _over_channels(x: Tensor, dim: int, norm: str) -> Tensor:
    """Channels 0 to D // 2 of ``x F_D``, ``(B, D // 2 + 1, L)``: transforms over last axes are by far the fastest."""
    return torch.fft.rfft(x, dim, norm=norm).mT.contiguous()


def _over_tokens(half: Tensor, grid: Grid, norm: str) -> Tensor:
    """The real part of the transform over the tokens, ``(B, D // 2 + 1, L)``."""
    axes = tuple(range(2, 2 + len(grid)))
    return torch.fft.fftn(half.unflatten(2, grid), dim=axes, norm=norm).real.flatten(2)


def _mirrored(half: Tensor, dim: int, grid: Grid) -> Tensor:
    """All channels ``(B, L, D)``: channel D - d at token k is channel d at token -k."""
    back = torch.zeros((), dtype=torch.long, device=half.device)
    for size in grid:
        back = back.unsqueeze(-1) * size + -torch.arange(size, device=half.device) % size
    (batch, kept, length), rest = half.shape, (dim - 1) // 2
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and half.requires_grad):
        tokens = half.mT.contiguous()
        return torch.cat((tokens, tokens.narrow(2, 1, rest).flip(2).index_select(1, back.flatten())), 2)
    tokens = half.new_empty(batch, length, dim)
    tokens.narrow(2, 0, kept).copy_(half.mT)
    tokens.narrow(2, kept, rest).copy_(tokens.narrow(2, 1, rest).flip(2).index_select(1, back.flatten()))
    return tokens


class _Half(torch.autograd.Function):
    """Half of the channels of ``Re(F_L x F_D)``. The whole is symmetric as a map of x, so its gradient is itself: again
    real transforms, where that of ``rfft`` is a complex one of all channels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, half: Tensor, grid: Grid, norm: str) -> Tensor:
        return _over_tokens(half, grid, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.grid, ctx.norm = inputs
        ctx.dim = x.shape[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        half = _over_channels(gradient.mT, ctx.dim, ctx.norm)  # what is missing of the channels counts as zeros
        return _mirrored(_over_tokens(half, ctx.grid, ctx.norm), ctx.dim, ctx.grid), None, None, None
