# mypy: allow-untyped-defs
"""``convolve`` on a GPU: Triton kernels for depthwise convolution of channels-last images, and for its gradients.

    y[p] = bias + sum_t w[t] x[p + t - before],   dx[q] = sum_t w[t] dy[q - t + before],
    dw[t] = sum_p dy[p] x[p + t - before]

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

from matmix.ops.function import Function, call
from matmix.ops.gpu import on_device

_SIZES = ["channels", "rows", "columns", "up", "left"]  # no value of these, or of strides, gets a kernel of its own
_IMAGE = ["x_b", "x_r", "x_c"]


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


@triton.jit(do_not_specialize=[*_SIZES, *_IMAGE])
def _convolve(
    image, x_b, x_r, x_c,
    taps,  # (HIGH WIDE, C)
    bias, out,
    channels, rows, columns, up, left,
    HIGH: tl.constexpr, WIDE: tl.constexpr, FLIP: tl.constexpr, BIAS: tl.constexpr,
    S: tl.constexpr, U: tl.constexpr, PR: tl.constexpr, PS: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
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
            weight = tl.load(taps + tap * C + channel, mask=kept & (wide + s < WIDE), other=0.0)
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
    for u in tl.static_range(U):
        tl.store(at + u * C, total[u], mask=kept & (row < rows) & (column + u < columns))


@triton.jit(do_not_specialize=[*_SIZES, *_IMAGE, "g_b", "g_r", "g_c", "tiles", "every"])
def _d_kernel(
    image, x_b, x_r, x_c,
    gradient, g_b, g_r, g_c,
    d_taps, d_bias,  # (parts, HIGH WIDE, C), (parts, C)
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
    at = d_taps + part.to(tl.int64) * (HIGH * WIDE) * C + place
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            inside = (place < C) & (high + r < HIGH) & (wide + s < WIDE)
            tl.store(at + ((high + r) * WIDE + wide + s) * C, tl.sum(total[r * S + s], 0), mask=inside)
    if BIAS:  # known to the compiler, which the strip is not
        if strip == 0:
            tl.store(d_bias + part.to(tl.int64) * C + place, tl.sum(whole, 0), mask=place < C)


# ------------------------------------------------------------------ their launches


def convolve(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int]) -> Tensor:
    """``depthwise.convolve``; arguments as there, none empty, of one dtype not longer than float32, channels last.

    Under autocast they are taken in its dtype, as ``F.conv2d`` would.
    """
    if torch.is_autocast_enabled(image.device.type):
        dtype = torch.get_autocast_dtype(image.device.type)
        image, kernel = image.to(dtype), kernel.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return call(_Convolution, image, kernel, bias, tuple(before))


class _Convolution(Function):
    @staticmethod
    def forward(image: Tensor, kernel: Tensor, bias: Tensor | None, before: tuple[int, int]) -> Tensor:
        return _convolved(image, kernel, bias, before)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, kernel, _, ctx.before = inputs
        ctx.save_for_backward(image, kernel)
        ctx.save_for_forward(image, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, kernel = ctx.saved_tensors
        to_image, to_kernel, to_bias = ctx.needs_input_grad[:3]
        # What is differentiated again, or taken for many gradients at once, goes the way that allows for it.
        plain = type(gradient) is Tensor and torch._C._functorch.peek_interpreter_stack() is None
        many = torch._C._dispatch_keys(gradient).has("Batched")  # by is_grads_batched=True
        if torch.is_grad_enabled() or many or not plain:
            return (*_plainly(gradient, image, kernel, ctx.before, [to_image, to_kernel, to_bias]), None)
        if gradient.stride(1) != 1:
            gradient = gradient.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        d_image = d_kernel = d_bias = None
        if to_image:
            behind = [k - 1 - b for k, b in zip(kernel.shape[2:], ctx.before, strict=True)]
            d_image = _convolved(gradient, kernel, None, behind, flip=True)
        if to_kernel:
            d_kernel, d_bias = _summed(image, gradient, kernel, ctx.before, to_bias)
        elif to_bias:
            d_bias = gradient.sum((0, 2, 3))
        return d_image, d_kernel, d_bias, None

    @staticmethod
    def jvp(ctx: Any, d_image: Tensor | None, d_kernel: Tensor | None, d_bias: Tensor | None, _: None) -> Tensor:
        from matmix.ops.depthwise import by_torch

        image, kernel = ctx.saved_tensors
        parts = [] if d_image is None else [by_torch(d_image, kernel, None, ctx.before)]
        if d_kernel is not None:
            parts.append(by_torch(image, d_kernel, None, ctx.before))
        if d_bias is not None:
            parts.append(d_bias.view(-1, 1, 1).expand_as(image))
        return sum(parts[1:], parts[0])


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
        tiles = batch * triton.cdiv(rows, self.PR) * triton.cdiv(columns, self.U * self.PS)
        return tiles, triton.cdiv(channels, self.BC)


WARPS = 4
STRIP = 8  # taps of a strip, at most
TAPS = 9  # a kernel of no more than these, and of one strip, gets its gradient in one go
PROGRAMS = 396  # of the gradient of the kernel: what a GPU runs at once


@cache
def plan(channels: int, rows: int, columns: int, wide: int) -> _Plan:
    """For an image of that size, and a kernel of so many columns."""
    strip = triton.cdiv(wide, triton.cdiv(wide, STRIP))
    run = min((8, 7, 4, 1), key=lambda u: triton.cdiv(columns, u) * (u + 2))  # little beyond the border, and long
    block = 128 if rows == 1 and (channels % 128 == 0 or channels > 512) else 64
    block = min(block, triton.next_power_of_2(channels))
    runs = 128 * WARPS // block  # four channels of a run for every thread
    high = min(runs, 8, triton.next_power_of_2(rows))
    return _Plan(strip, run, high, runs // high, block, WARPS)


def _strides(channels: int, *images: Tensor) -> tuple[int, list[list[int]]]:
    """V, and the strides of samples, rows and columns in units of it; 0 where there is but one, whatever it says."""
    strides = [[t.stride(axis) if t.shape[axis] > 1 else 0 for axis in (0, 2, 3)] for t in images]
    unit = math.gcd(16, channels, *(s for several in strides for s in several))
    return unit, [[s // unit for s in several] for several in strides]


def _taps_first(kernel: Tensor) -> Tensor:
    return kernel.flatten(1).mT.contiguous()


def _convolved(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int], flip: bool = False) -> Tensor:
    batch, channels, rows, columns = image.shape
    cut = plan(channels, rows, columns, kernel.shape[3])
    unit, (strides,) = _strides(channels, image)
    out = image.new_empty(batch, rows, columns, channels)
    with on_device(image.device):
        _convolve[(math.prod(cut.counts(image)),)](
            image, *strides, _taps_first(kernel), None if bias is None else bias.contiguous(), out,
            channels // unit, rows, columns, *before,
            HIGH=kernel.shape[2], WIDE=kernel.shape[3], FLIP=flip, BIAS=bias is not None, V=unit, **cut._asdict(),
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
    strips = triton.cdiv(high, together) * triton.cdiv(wide, cut.S)
    tiles, blocks = cut.counts(image)
    every = triton.cdiv(tiles, max(1, PROGRAMS // (strips * blocks)))
    parts = triton.cdiv(tiles, every)
    unit, (strides, others) = _strides(channels, image, gradient)
    d_taps = image.new_empty(parts, high * wide, channels, dtype=torch.float32)
    d_bias = d_taps.new_empty(parts, channels) if to_bias else None
    with on_device(image.device):
        _d_kernel[(parts * strips * blocks,)](
            image, *strides, gradient, *others, d_taps, d_bias,
            channels // unit, rows, columns, *before, tiles, every,
            HIGH=high, WIDE=wide, BIAS=to_bias, R=together, V=unit, **cut._asdict(),
        )  # fmt: skip
    d_kernel = d_taps.sum(0).mT.reshape(kernel.shape).to(kernel.dtype)
    return d_kernel, None if d_bias is None else d_bias.sum(0).to(kernel.dtype)
