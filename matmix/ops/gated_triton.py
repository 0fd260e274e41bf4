# mypy: allow-untyped-defs
"""Gated signals on a GPU, with and without an RMS norm: Triton kernels, one launch for each way.

    s = sigmoid(z),  a = z s,  r = rsqrt(mean(u^2) + eps),  n = r u

    no norm     y = x a
    gate first  y = n w,    u = x a
    norm first  y = n w a,  u = x

and back from dy, with h the gradient of n,

    du = r (h - n mean(h n)),  dz = s (1 + z (1 - s)) da

Only x, the gate z and the weight w are kept; s, a and r are made again. The gradient of the weight is summed over parts
of the tokens, which are added up afterwards without atomics: every run gives the same bits. Sums are float32.

The channels of a norm stand side by side: those of a group, or of a head, whose weight all heads share. Without a norm,
a group is a block of channels, the last one perhaps not full.

Legend: T tokens, of which a tile has R, G groups of W channels in a block of BC.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matmix.ops.function import Function, call, differentiated_once
from matmix.ops.gpu import cdiv, on_device, power_of_2
from matmix.ops.precision import working_dtype

_PLAIN = ["tokens", "every"]  # no value of these gets a kernel of its own


# ------------------------------------------------------------------ kernels


@triton.jit
def _tile(pointer, t, t_stride, c, kept):
    """``(R, BC)`` numbers."""
    return tl.load(pointer + t[:, None] * t_stride + c[None, :], mask=kept, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_PLAIN)
def _forward(
    x, x_t, x_g,
    gate, z_t, z_g,
    weight, w_g,
    out,  # (T, channels)
    tokens, channels, eps,
    NORM: tl.constexpr, FIRST: tl.constexpr, W: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    t = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, BC)
    there = (c < W) & (c < channels - group * W)
    kept = (t < tokens)[:, None] & there[None, :]
    y = _tile(x + group * x_g, t, x_t, c, kept)
    z = _tile(gate + group * z_g, t, z_t, c, kept)
    opened = z * tl.sigmoid(z)
    if FIRST or not NORM:
        y *= opened
    if NORM:
        w = tl.load(weight + group * w_g + c, mask=there, other=0.0).to(tl.float32)
        y *= tl.rsqrt(tl.sum(y * y, 1) / W + eps)[:, None] * w[None, :]
        if not FIRST:
            y *= opened
    tl.store(out + group * W + t[:, None] * channels + c[None, :], y, mask=kept)


@triton.jit(do_not_specialize=_PLAIN)
def _backward(
    x, x_t, x_g,
    gate, z_t, z_g,
    gradient, g_t, g_g,
    weight, w_g,
    d_x, d_gate, d_weight,  # (T, channels) twice, (parts, channels)
    tokens, channels, eps,
    every,  # tiles of a part
    NORM: tl.constexpr, FIRST: tl.constexpr, W: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    part, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BC)
    there = (c < W) & (c < channels - group * W)
    if NORM:
        w = tl.load(weight + group * w_g + c, mask=there, other=0.0).to(tl.float32)[None, :]
        total = tl.zeros((R, BC), tl.float32)
    for index in range(every):
        t = (part * every + index) * R + tl.arange(0, R)
        kept = (t < tokens)[:, None] & there[None, :]
        signal = _tile(x + group * x_g, t, x_t, c, kept)
        z = _tile(gate + group * z_g, t, z_t, c, kept)
        dy = _tile(gradient + group * g_g, t, g_t, c, kept)
        share = tl.sigmoid(z)
        opened = z * share
        dx = dy * opened
        d_opened = dy * signal
        if NORM:
            u = signal
            h = dx * w
            if FIRST:
                u = signal * opened
                h = dy * w
            r = tl.rsqrt(tl.sum(u * u, 1) / W + eps)[:, None]
            n = u * r
            du = r * (h - n * (tl.sum(h * n, 1) / W)[:, None])
            if FIRST:
                total += dy * n
                dx = du * opened
                d_opened = du * signal
            else:
                total += dx * n
                dx = du
                d_opened = dy * w * n
        at = group * W + t[:, None] * channels + c[None, :]
        tl.store(d_x + at, dx, mask=kept)
        tl.store(d_gate + at, d_opened * share * (1 + z * (1 - share)), mask=kept)
    if NORM:
        tl.store(d_weight + part * channels + group * W + c, tl.sum(total, 0), mask=there)


# ------------------------------------------------------------------ their launches


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """``x silu(gate)`` of two tensors ``(..., D)``, float32 or shorter and not empty."""
    result: Tensor = call(_Gated, x, gate, None, 1, False, 0.0)
    return result


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, groups: int, gate_first: bool, eps: float) -> Tensor:
    """``GatedRMSNorm`` of two tensors ``(..., D)``, float32 or shorter and not empty, D / groups at most ``MOST``."""
    result: Tensor = call(_Gated, x, gate, weight, groups, gate_first, eps)
    return result


class _Gated(Function):
    @staticmethod
    def forward(x: Tensor, gate: Tensor, weight: Tensor | None, groups: int, first: bool, eps: float) -> Tensor:
        dtype = x.dtype if weight is not None else torch.promote_types(x.dtype, gate.dtype)
        out = x.new_empty(x.shape, dtype=dtype)
        plan = _Plan(x, weight, groups)
        with on_device(x.device):
            _forward[(plan.tiles, plan.groups)](
                *plan.of(x), *plan.of(gate), *plan.weight, out, plan.tokens, plan.channels, eps,
                FIRST=first, **plan.options,
            )  # fmt: skip
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        way = _gradients if differentiated_once(gradient) else _plainly
        return (*way(gradient, *ctx.saved_tensors, *ctx.options), None, None, None)


def _gradients(
    gradient: Tensor, x: Tensor, gate: Tensor, weight: Tensor | None, groups: int, first: bool, eps: float
) -> tuple[Tensor | None, ...]:
    plan = _Plan(x, weight, groups)
    every = 1 if weight is None else cdiv(plan.tiles * plan.groups, PROGRAMS)
    parts = cdiv(plan.tiles, every)
    d_x, d_gate = x.new_empty(x.shape), gate.new_empty(gate.shape)
    d_weight = None if weight is None else x.new_empty(parts, plan.channels, dtype=torch.float32)
    with on_device(x.device):
        _backward[(parts, plan.groups)](
            *plan.of(x), *plan.of(gate), *plan.of(gradient), *plan.weight, d_x, d_gate, d_weight,
            plan.tokens, plan.channels, eps, every, FIRST=first, **plan.options,
        )  # fmt: skip
    if weight is None or d_weight is None:
        return d_x, d_gate, None
    return d_x, d_gate, d_weight.view(-1, len(weight)).sum(0).to(weight.dtype)


def _plainly(
    gradient: Tensor, x: Tensor, gate: Tensor, weight: Tensor | None, groups: int, first: bool, eps: float
) -> tuple[Tensor | None, ...]:
    """The gradients in operations of PyTorch, which can be differentiated any number of times."""
    dtype = working_dtype(x, gate)
    signal, z, dy = x.to(dtype), gate.to(dtype), gradient.to(dtype)
    share = torch.sigmoid(z)
    opened = z * share
    slope = share * (1 + z * (1 - share))
    if weight is None:
        return (dy * opened).to(x.dtype), (dy * signal * slope).to(gate.dtype), None
    w, sizes = weight.to(dtype), (*x.shape[:-1], groups, len(weight) // groups)
    u = (signal * opened if first else signal).reshape(sizes)
    h = (dy * w if first else dy * w * opened).reshape(sizes)
    r = torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    n = u * r
    du = (r * (h - n * (h * n).mean(-1, keepdim=True))).reshape(x.shape)
    n = n.reshape(x.shape)
    d_x = du * opened if first else du
    d_gate = (du * signal if first else dy * w * n) * slope
    d_weight = (dy * n if first else dy * n * opened).reshape(-1, len(weight)).sum(0)
    return d_x.to(x.dtype), d_gate.to(gate.dtype), d_weight.to(weight.dtype)


class _Plan:
    """The shapes and the arguments that both kernels share."""

    def __init__(self, x: Tensor, weight: Tensor | None, groups: int) -> None:
        self.channels = x.shape[-1]
        self.weight: tuple[Tensor | None, int] = (None, 0)  # and what lies between two groups of it
        if weight is None:
            width = min(BLOCK, power_of_2(self.channels))
            self.groups, self.shape = cdiv(self.channels, width), (1, self.channels)
        elif groups == 1 and x.dim() > 3:  # heads, perhaps not side by side
            self.groups, width = self.shape = x.shape[-2], x.shape[-1]
            self.weight, self.channels = (weight.contiguous(), 0), self.groups * width
        else:
            self.groups, width = self.shape = groups, self.channels // groups
            self.weight = (weight.contiguous(), width)
        self.tokens = x.numel() // self.channels
        block = power_of_2(width)
        rows = min(max(1, ENTRIES // block), power_of_2(self.tokens))
        self.tiles = cdiv(self.tokens, rows)
        warps = min(16, max(1, rows * block // 512))
        self.options = {"NORM": weight is not None, "W": width, "R": rows, "BC": block, "num_warps": warps}

    def of(self, tensor: Tensor) -> tuple[Tensor, int, int]:
        """A tensor with its strides of tokens and groups; channels lie side by side."""
        rows = (tensor if tensor.stride(-1) == 1 else tensor.contiguous()).reshape(-1, *self.shape)
        token, group, _ = rows.stride()
        return rows, token, group if self.options["NORM"] else self.options["W"]


# What was judged to be good, not measured; no result depends on it but in the order of sums.
ENTRIES = 2048  # of a tile
BLOCK = 256  # channels of a tile where there is no norm
PROGRAMS = 528  # of the gradients of a norm, at most: what an H100 runs at once
