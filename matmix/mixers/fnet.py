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
from matmix.ops import fft
from matmix.ops.function import Function, call
from matmix.ops.pieces import room
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
        if context.product_only:
            values = x.new_empty(0)
        else:
            values = torch.view_as_real(fft.rfft(x, norm=norm).mT.contiguous()).flatten(2).unsqueeze(-1)
        # The real part of both transforms made in one go: half the time of one after the other.
        product = call(_Half, x, grid, norm).mT.unsqueeze(-1)
        gain = 1 / math.sqrt(x.shape[1]) if self.norm == "ortho" else 1.0
        return Projected(Known(Fourier.like(values, grid, gain, pairs=True), values, product), values, grid)

    def merge(self, mixed: Tensor, rest: Grid) -> Tensor:
        return call(_Mirrored, mixed.squeeze(-1).mT, self.dim, rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}"


def _half_spectrum(x: Tensor, dim: int, grid: Grid, norm: str) -> Tensor:
    """Channels 0 to D // 2 of the real part of ``F_L x F_D``, ``(B, L, D // 2 + 1)``; channels missing from x are 0."""
    axes = tuple(range(1, 2 + len(grid)))
    whole = x.is_cuda or torch.compiler.is_compiling()
    pieces = [x] if whole else x.split(max(1, room() // max(1, x[:1].nbytes)))  # which stay in the caches
    half = [fft.rfftn(p.unflatten(1, grid), (*grid, dim), axes, norm).real.flatten(1, -2) for p in pieces]
    return torch.cat(half) if len(half) > 1 else half[0]


def _opposite(grid: Grid, device: torch.device) -> Tensor:
    """The token at -k for every token k of a grid, ``(L,)``."""
    back = torch.zeros((), dtype=torch.long, device=device)
    for size in grid:
        back = back.unsqueeze(-1) * size + -torch.arange(size, device=device) % size
    return back.flatten()


class _Half(Function):
    """Half of the channels of ``Re(F_L x F_D)``. The whole is symmetric as a map of x, so its gradient is itself: again
    real transforms, where that of ``rfftn`` is a complex one of all channels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grid: Grid, norm: str) -> Tensor:
        return _half_spectrum(x, x.shape[2], grid, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.grid, ctx.norm = inputs
        ctx.dim = x.shape[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        half = _half_spectrum(gradient, ctx.dim, ctx.grid, ctx.norm)
        return call(_Mirrored, half, ctx.dim, ctx.grid), None, None


class _Mirrored(Function):
    """All channels ``(B, L, D)`` from half of them: channel D - d at token k is channel d at token -k. Its gradient
    folds them back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(half: Tensor, dim: int, grid: Grid) -> Tensor:
        rest = (dim - 1) // 2
        mirror = half.narrow(2, 1, rest).flip(2).index_select(1, _opposite(grid, half.device))
        return torch.cat((half, mirror), 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        half, ctx.dim, ctx.grid = inputs
        ctx.kept = half.shape[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        half, mirror = gradient.split((ctx.kept, ctx.dim - ctx.kept), 2)
        mirror = mirror.index_select(1, _opposite(ctx.grid, gradient.device)).flip(2)
        half = half.clone()
        half.narrow(2, 1, mirror.shape[2]).add_(mirror)
        return half, None, None
