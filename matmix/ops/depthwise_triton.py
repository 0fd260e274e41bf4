# mypy: allow-untyped-defs
"""``convolve`` on a GPU: Triton kernels for depthwise convolution of channels-last images, and for its gradients.

    y[p] = bias + sum_t w[t] x[p + t - before],   dx[q] = sum_t w[t] dy[q - t + before],
    dw[t] = sum_p dy[p] x[p + t - before]

With SiLU the way back first computes y once more and ``dy = dz silu'(y)``, instead of keeping y.

Moving the bytes is all that this should cost. A thread takes four channels, which lie side by side, of a run of U
columns: the U + S - 1 numbers that a strip of S taps needs for a run are loaded once and stay in registers. A program's
tile is PR rows of PS runs each, so that taps above and below find in the cache what others have read. The way back to
the image is the way ahead with the taps turned round. For the gradient of the kernel a program goes through a part of
the tiles with some rows of one strip of taps; the parts are added up afterwards, without atomics, so every run gives
the same bits. Zeros beyond the border are masks: nothing is padded and nothing cut off. Sums are float32.

Legend: C channels in blocks of BC, U columns of a run, PR x PS runs of a tile, S taps of a strip. C and the strides are
counted in units of V, the most (up to 16) that divides them all: so the compiler knows what may be read at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.function import Function, call, differentiated_once
from matmix.ops.gpu import cdiv, on_device, power_of_2

_SIZES = ["channels", "rows", "columns", "up", "left"]  # no value of these, or of strides, gets a kernel of its own
_IMAGE = ["x_b", "x_r", "x_c"]
_GRADIENT = ["g_b", "g_r", "g_c"]


# ------------------------------------------------------------------ pieces


@triton.jit
def _places(tile, rows, columns, U: tl.constexpr, PR: tl.constexpr, PS: tl.constexpr):
    """The sample of a tile, and the rows and first columns of its runs, ``(PR PS, 1)``."""
    across = tl.cdiv(columns, U * PS)
    down = tl.cdiv(rows, PR)
    run = tl.arange(0, PR * PS)[:, None]
    row = tile // across % down * PR + run // PS
    column = (tile % across * PS + run % PS) * U
    return (tile // across // down).to(tl.int64), row, column


@triton.jit
def _numbers(
    image, sample, row, column, channel, kept,
    b, r, c, rows, columns,
    COUNT: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Of a row of the image, so many columns from the given one on; zeros beyond the border. Each ``(runs, BC)``."""
    at = image + (sample * b * V + row.to(tl.int64) * r * V + column.to(tl.int64) * c * V) + channel
    step = c.to(tl.int64) * V
    kept = kept & (row >= 0) & (row < rows)
    found = ()
    for j in tl.static_range(COUNT):
        inside = kept & (column + j >= 0) & (column + j < columns)
        found = found + (tl.load(at + j * step, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    return found


@triton.jit
def _zeros(COUNT: tl.constexpr, RUNS: tl.constexpr, BC: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((RUNS, BC), tl.float32),)  # type: ignore[assignment]
    return found


# ------------------------------------------------------------------ kernels


@triton.jit(do_not_specialize=[*_SIZES, *_IMAGE, *_GRADIENT])
def _convolve(
    image, x_b, x_r, x_c,
    gradient, g_b, g_r, g_c,
    taps,  # (HIGH WIDE, C) if FIRST, else (C, HIGH WIDE)
    bias, out,
    channels, rows, columns, up, left,
    HIGH: tl.constexpr, WIDE: tl.constexpr, FIRST: tl.constexpr, FLIP: tl.constexpr, BIAS: tl.constexpr,
    SILU: tl.constexpr, BACK: tl.constexpr,
    S: tl.constexpr, U: tl.constexpr, PR: tl.constexpr, PS: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """The convolution; SiLU of it; or, going BACK, the gradient times the derivative of SiLU there."""
    C = channels * V
    blocks = tl.cdiv(C, BC)
    sample, row, column = _places(tl.program_id(0) // blocks, rows, columns, U, PR, PS)
    # As wide as the tile, though alike in all of its runs: so taps are loaded where they are used, by every thread.
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)[None, :] + tl.zeros((PR * PS, 1), tl.int32)
    kept = channel < C
    total = _zeros(U, PR * PS, BC)
    if BIAS:
        every = tl.load(bias + channel, mask=kept, other=0.0).to(tl.float32)
        total = ()
        for _ in tl.static_range(U):
            total = total + (every,)
    for strip in range(HIGH * tl.cdiv(WIDE, S)):
        high = strip // tl.cdiv(WIDE, S)
        wide = strip % tl.cdiv(WIDE, S) * S
        weights = ()
        for s in tl.static_range(S):
            tap = high * WIDE + wide + s
            if FLIP:
                tap = HIGH * WIDE - 1 - tap
            place = tap * C + channel if FIRST else channel * (HIGH * WIDE) + tap
            weight = tl.load(taps + place, mask=kept & (wide + s < WIDE), other=0.0)
            weights = weights + (weight.to(tl.float32),)  # type: ignore[assignment]
        numbers = _numbers(
            image, sample, row + high - up, column + wide - left, channel, kept,
            x_b, x_r, x_c, rows, columns, U + S - 1, V,
        )  # fmt: skip
        sums = ()
        for u in tl.static_range(U):
            one = total[u]
            for s in tl.static_range(S):
                one += weights[s] * numbers[u + s]
            sums = sums + (one,)  # type: ignore[assignment]
        total = sums
    at = out + ((sample * rows + row) * columns + column) * C + channel
    if BACK:
        given = _numbers(gradient, sample, row, column, channel, kept, g_b, g_r, g_c, rows, columns, U, V)
    for u in tl.static_range(U):
        result = total[u]
        if SILU:
            share = tl.sigmoid(result)
            if BACK:
                result = given[u] * share * (1 + result * (1 - share))
            else:
                result *= share
        tl.store(at + u * C, result, mask=kept & (row < rows) & (column + u < columns))


@triton.jit(do_not_specialize=[*_SIZES, *_IMAGE, *_GRADIENT, "tiles", "every"])
def _d_kernel(
    image, x_b, x_r, x_c,
    gradient, g_b, g_r, g_c,
    sums_of_parts,  # (parts, C HIGH WIDE), and C more for the bias
    channels, rows, columns, up, left,
    tiles, every,  # tiles in all, and of a part
    HIGH: tl.constexpr, WIDE: tl.constexpr, BIAS: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, U: tl.constexpr, PR: tl.constexpr, PS: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """R rows of a strip of S taps, from a part of the tiles."""
    C = channels * V
    blocks = tl.cdiv(C, BC)
    strips = tl.cdiv(HIGH, R) * tl.cdiv(WIDE, S)
    strip = tl.program_id(0) // blocks % strips
    part = tl.program_id(0) // blocks // strips
    high = strip // tl.cdiv(WIDE, S) * R
    wide = strip % tl.cdiv(WIDE, S) * S
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)[None, :]
    kept = channel < C
    total = _zeros(R * S, PR * PS, BC)
    whole = tl.zeros((PR * PS, BC), tl.float32)
    for index in range(every):
        tile = part * every + index
        sample, row, column = _places(tile, rows, columns, U, PR, PS)
        there = kept & (tile < tiles)
        given = _numbers(gradient, sample, row, column, channel, there, g_b, g_r, g_c, rows, columns, U, V)
        if BIAS:
            for u in tl.static_range(U):
                whole += given[u]
        sums = ()
        for r in tl.static_range(R):
            numbers = _numbers(
                image, sample, row + high + r - up, column + wide - left, channel, there,
                x_b, x_r, x_c, rows, columns, U + S - 1, V,
            )  # fmt: skip
            for s in tl.static_range(S):
                one = total[r * S + s]
                for u in tl.static_range(U):
                    one += given[u] * numbers[u + s]
                sums = sums + (one,)  # type: ignore[assignment]
        total = sums
    place = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    own = sums_of_parts + part.to(tl.int64) * (HIGH * WIDE + (1 if BIAS else 0)) * C
    at = own + place * (HIGH * WIDE)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            inside = (place < C) & (high + r < HIGH) & (wide + s < WIDE)
            tl.store(at + (high + r) * WIDE + wide + s, tl.sum(total[r * S + s], 0), mask=inside)
    if BIAS:  # known to the compiler, which the strip is not
        if strip == 0:
            tl.store(own + HIGH * WIDE * C + place, tl.sum(whole, 0), mask=place < C)


# ------------------------------------------------------------------ their launches


def convolve(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int], silu: bool = False) -> Tensor:
    """``depthwise.convolve``; arguments as there, none empty, of one dtype not longer than float32, channels last.

    Under autocast they are taken in its dtype, as ``F.conv2d`` would.
    """
    if torch.is_autocast_enabled(image.device.type):
        dtype = torch.get_autocast_dtype(image.device.type)
        image, kernel = image.to(dtype), kernel.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return call(_Convolution, image, kernel, bias, tuple(before), silu)


class _Convolution(Function):
    @staticmethod
    def forward(image: Tensor, kernel: Tensor, bias: Tensor | None, before: tuple[int, int], silu: bool) -> Tensor:
        return _convolved(image, kernel, bias, before, silu=silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.before, ctx.silu = inputs
        if not ctx.silu:
            tensors[2] = None  # the bias: only the derivative of SiLU asks for it
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, kernel, bias = ctx.saved_tensors
        to_image, to_kernel, to_bias = ctx.needs_input_grad[:3]
        if not differentiated_once(gradient):
            if ctx.silu:
                gradient = _through_silu(gradient, image, kernel, bias, ctx.before)
            return (*_plainly(gradient, image, kernel, ctx.before, [to_image, to_kernel, to_bias]), None, None)
        if gradient.stride(1) != 1:
            gradient = gradient.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if ctx.silu:
            gradient = _convolved(image, kernel, bias, ctx.before, silu=True, gradient=gradient)
        d_image = d_kernel = d_bias = None
        if to_image:
            behind = [k - 1 - b for k, b in zip(kernel.shape[2:], ctx.before, strict=True)]
            d_image = _convolved(gradient, kernel, None, behind, flip=True)
        if to_kernel:
            d_kernel, d_bias = _summed(image, gradient, kernel, ctx.before, to_bias)
        elif to_bias:
            d_bias = gradient.sum((0, 2, 3))
        return d_image, d_kernel, d_bias, None, None

    @staticmethod
    def jvp(ctx: Any, d_image: Tensor | None, d_kernel: Tensor | None, d_bias: Tensor | None, *_: None) -> Tensor:
        from matmix.ops.depthwise import by_torch

        image, kernel, bias = ctx.saved_tensors
        parts = [] if d_image is None else [by_torch(d_image, kernel, None, ctx.before)]
        if d_kernel is not None:
            parts.append(by_torch(image, d_kernel, None, ctx.before))
        if d_bias is not None:
            parts.append(d_bias.view(-1, 1, 1).expand_as(image))
        slope = sum(parts[1:], parts[0])
        return _through_silu(slope, image, kernel, bias, ctx.before) if ctx.silu else slope


def _through_silu(change: Tensor, image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int]) -> Tensor:
    """A gradient or tangent times the derivative of SiLU at the convolution, in operations of PyTorch."""
    from matmix.ops.depthwise import by_torch

    hidden = by_torch(image, kernel, bias, before)
    share = hidden.sigmoid()
    return change * (share * (1 + hidden * (1 - share)))


def _plainly(
    gradient: Tensor, image: Tensor, kernel: Tensor, before: Sequence[int], wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients in operations of PyTorch, which can be differentiated any number of times."""
    sizes = kernel.shape[2:]
    padding = [max(b, k - 1 - b) for b, k in zip(before, sizes, strict=True)]
    margins = [m for p, b, k in zip(padding, before, sizes, strict=True) for m in (p - b, p - (k - 1 - b))]
    d_image, d_kernel, _ = torch.ops.aten.convolution_backward(
        F.pad(gradient, (*margins[2:], *margins[:2])), image, kernel, None,
        [1, 1], padding, [1, 1], False, [0, 0], image.shape[1], [*wanted[:2], False],
    )  # fmt: skip
    return d_image, d_kernel, gradient.sum((0, 2, 3)) if wanted[2] else None


class _Plan(NamedTuple):
    """How an image is cut into tiles. What was measured to be good; no result depends on it."""

    S: int
    U: int
    PR: int
    PS: int
    BC: int
    num_warps: int

    def counts(self, image: Tensor) -> tuple[int, int]:
        """Tiles, and blocks of channels."""
        batch, channels, rows, columns = image.shape
        tiles = batch * cdiv(rows, self.PR) * cdiv(columns, self.U * self.PS)
        return tiles, cdiv(channels, self.BC)


WARPS = 4
STRIP = 8  # taps of a strip, at most
TAPS = 9  # a kernel of no more than these, and of one strip, gets its gradient in one go
SMALL = 2**24  # numbers of an image up to which to put the taps in order costs more than to read them as they are
PROGRAMS = 396  # of the gradient of the kernel: what a GPU runs at once


@cache
def plan(channels: int, rows: int, columns: int, wide: int) -> _Plan:
    """For an image of that size, and a kernel of so many columns."""
    strip = cdiv(wide, cdiv(wide, STRIP))
    run = min((8, 7, 4, 1), key=lambda u: cdiv(columns, u) * (u + 2))  # little beyond the border, and long
    block = 128 if rows == 1 and (channels % 128 == 0 or channels > 512) else 64
    block = min(block, power_of_2(channels))
    runs = 128 * WARPS // block  # four channels of a run for every thread
    high = min(runs, 8, power_of_2(rows))
    return _Plan(strip, run, high, runs // high, block, WARPS)


def _strides(channels: int, *images: Tensor) -> tuple[int, list[list[int]]]:
    """V, and the strides of samples, rows and columns in units of it; 0 where there is but one, whatever it says."""
    strides = [[t.stride(axis) if t.shape[axis] > 1 else 0 for axis in (0, 2, 3)] for t in images]
    unit = math.gcd(16, channels, *(s for several in strides for s in several))
    return unit, [[s // unit for s in several] for several in strides]


def _convolved(
    image: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    before: Sequence[int],
    *,
    flip: bool = False,
    silu: bool = False,
    gradient: Tensor | None = None,
) -> Tensor:
    """The convolution or SiLU of it; with a gradient of the latter, that of the former."""
    batch, channels, rows, columns = image.shape
    high, wide = kernel.shape[2:]
    cut = plan(channels, rows, columns, wide)
    unit, (strides, *others) = _strides(channels, image, *([] if gradient is None else [gradient]))
    first = high * wide > STRIP or image.numel() > SMALL
    out = image.new_empty(batch, rows, columns, channels)
    with on_device(image.device):
        _convolve[(math.prod(cut.counts(image)),)](
            image, *strides, gradient, *(others[0] if others else (0, 0, 0)),
            kernel.flatten(1).mT.contiguous() if first else kernel.contiguous(),
            None if bias is None else bias.contiguous(), out,
            channels // unit, rows, columns, *before,
            HIGH=high, WIDE=wide, FIRST=first, FLIP=flip, BIAS=bias is not None, SILU=silu,
            BACK=gradient is not None, V=unit, **cut._asdict(),
        )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _summed(
    image: Tensor, gradient: Tensor, kernel: Tensor, before: Sequence[int], to_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the kernel and of the bias."""
    channels, rows, columns = image.shape[1:]
    high, wide = kernel.shape[2:]
    cut = plan(channels, rows, columns, kernel.shape[3])
    together = high if wide == cut.S and high * wide <= TAPS else 1
    strips = cdiv(high, together) * cdiv(wide, cut.S)
    tiles, blocks = cut.counts(image)
    every = cdiv(tiles, max(1, PROGRAMS // (strips * blocks)))
    parts = cdiv(tiles, every)
    unit, (strides, others) = _strides(channels, image, gradient)
    size = kernel.numel()
    sums = image.new_empty(parts, size + (channels if to_bias else 0), dtype=torch.float32)
    with on_device(image.device):
        _d_kernel[(parts * strips * blocks,)](
            image, *strides, gradient, *others, sums,
            channels // unit, rows, columns, *before, tiles, every,
            HIGH=high, WIDE=wide, BIAS=to_bias, R=together, V=unit, **cut._asdict(),
        )  # fmt: skip
    total = sums.sum(0).to(kernel.dtype)
    return total[:size].view(kernel.shape), total[size:] if to_bias else None
