"""FNet: the Fourier transform as the token mixer."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from matmix.matrices.fourier import Fourier
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops import fft
from matmix.ops.function import Function, call
from matmix.ops.pieces import piece_bytes
from matmix.ops.precision import working_dtype
from matmix.ops.private import in_jit_trace

_NORMS = {"none": "backward", "ortho": "ortho"}  # ours and that of the transforms


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
        self.norm = norm

    def project(self, x: Tensor, context: Context) -> Projected:
        transformed = fft.fftn(self._exact(x), dim=2, norm=_NORMS[self.norm]).mT
        values = torch.view_as_real(transformed.contiguous()).flatten(2).unsqueeze(-1)
        gain = 1 / math.sqrt(x.shape[1]) if self.norm == "ortho" else 1.0
        return Projected(Fourier.like(values, context.grid, gain, pairs=True), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        if in_jit_trace():  # torch.jit keeps no function with a gradient of its own
            return super().product(x, context)
        # Both transforms at once: nothing complex is stored, and half of it is never computed.
        mixed = call(_RealTransform, self._exact(x), context.grid, _NORMS[self.norm])
        return mixed.mT.unsqueeze(-1), None

    def _exact(self, x: Tensor) -> Tensor:
        """Tokens in a dtype that transforms are exact in."""
        return x.to(working_dtype(x))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}"


class _RealTransform(Function):
    """The real part of ``F_L x F_D`` over tokens and channels in one go, ``(B, L, D)``.

    It is even over both together: channel D - d at token k is channel d at token -k. So real transforms give the
    channels up to D // 2, and the others are these from behind. As a map of x it is symmetric, so the gradient is the
    same again, where that of ``rfftn`` is a complex transform of all channels.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grid: Grid, norm: str) -> Tensor:
        dim, axes = x.shape[2], tuple(range(1, 2 + len(grid)))
        kept = dim // 2 + 1
        whole = x.is_cuda or torch.compiler.is_compiling()
        mixed = torch.empty_like(x, memory_format=torch.contiguous_format)
        maps = mixed.unflatten(1, grid)
        few = 0 if whole else max(1, piece_bytes() // max(1, x[:1].nbytes))  # samples that stay in the caches
        parts = zip(x.split(few), maps.split(few), strict=True) if few else [(x, maps)]
        for samples, into in parts:
            half = fft.rfftn(samples.unflatten(1, grid), dim=axes, norm=norm).real
            into.narrow(-1, 0, kept).copy_(half)
            _turn(half.narrow(-1, 1, dim - kept).flip(axes), into.narrow(-1, kept, dim - kept), len(grid))
        return mixed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.grid, ctx.norm = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return call(_RealTransform, gradient, ctx.grid, ctx.norm), None, None


def _turn(x: Tensor, into: Tensor, axis: int) -> None:
    """Write x into ``into``, rolled by one along the axes from 1 to ``axis``."""
    if torch.compiler.is_compiling():  # all but the last may be a single one, a special case to a tracer
        into.copy_(x.roll((1,) * axis, tuple(range(1, 1 + axis))))
        return
    if axis == 0:
        into.copy_(x)
        return
    last = x.shape[axis] - 1
    _turn(x.narrow(axis, last, 1), into.narrow(axis, 0, 1), axis - 1)
    if last > 0:
        _turn(x.narrow(axis, 0, last), into.narrow(axis, 1, last), axis - 1)
