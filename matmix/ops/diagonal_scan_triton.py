# mypy: allow-untyped-defs
"""``diagonal_scan`` on a GPU: Triton kernels for the recurrence of ``diagonal_recurrence`` and for its adjoint.

    S_i = exp(a_i) S_{i-1} + B_i w_i,   y_i = sum_n C_i[n] S_i[n],   w_i = s_i v_i

Samples times channels alone seldom fill a GPU, so the tokens are cut into spans that run side by side: one kernel runs
all spans from zero and keeps what leaves them, a second carries that into every span (through the spans before it, by
itself) and runs them again, reading the outputs. One span needs the second only. The adjoint goes through two such
kernels from the end. For it the forward pass keeps the state before every U tokens, N / U numbers a token and channel;
the U states behind are computed again and stand in registers. Nothing is divided and no logs are subtracted, so any
decay is exact; sums over channels are partial sums and no atomics, so every run gives the same bits.

How the states lie in the registers decides the speed. A program's states are a tile (NL, CW, NR, CR, CL) of states
``n = (NR, NL)`` and channels ``c = (CR, CW, CL)``. Where all that the compiler knows is that channels stand side by
side, it puts lanes on CL and NL (``NL CL = 32``) and warps on CW, and leaves NR and CR to a thread: sums over n and c
begin there, without an exchange. Hence the tables of states are (N, channels), and ``zero``, which the compiler does
not know to be 0, hides from it that they could be read four numbers at once.

Legend: B batch, H heads in G groups of R, L tokens, N state, W width; a channel is a column of a head of a group,
C = R W of them in K blocks; Z spans of tokens, T runs of U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.diagonal_scan import by_chunks
from matmix.ops.function import Function, call
from matmix.ops.gpu import cdiv, on_device
from matmix.ops.precision import full_precision
from matmix.ops.sizes import joint_batch

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-1e30)  # stands for a log decay of -inf: its product with a clock of 0 is 0, not NaN
_PLAIN = ["zero", "length", "size", "spans", "groups", "heads", "blocks"]  # no value of these gets a kernel of its own


@triton.jit
def _tile(block, NR: tl.constexpr, CR: tl.constexpr, CW: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr):
    """The states and channels of a tile."""
    n = tl.arange(0, NL)[:, None, None, None, None] + tl.arange(0, NR)[None, None, :, None, None] * NL
    c = tl.arange(0, CW)[None, :, None, None, None] + tl.arange(0, CR)[None, None, None, :, None] * CW
    return n, (block * (CR * CW) + c) * CL + tl.arange(0, CL)[None, None, None, None, :]


@triton.jit
def _over_states(tile):
    return tl.sum(tl.sum(tile, 2, keep_dims=True), 0, keep_dims=True)


@triton.jit
def _over_channels(tile):
    return tl.sum(tl.sum(tl.sum(tile, 3, keep_dims=True), 4, keep_dims=True), 1, keep_dims=True)


@triton.jit
def _which(blocks, spans, groups):
    """Block of channels, span, group and sample of a program; the blocks of one span run together: they share B, C."""
    pid = tl.program_id(0)
    block = pid % blocks
    pid //= blocks
    span = pid % spans
    pid //= spans
    return block, span, pid % groups, (pid // groups).to(tl.int64)


@triton.jit
def _logs(log_decay, d_t, ticks, rate, t, inside, RATES: tl.constexpr):
    """The log decay of a token, base 2; 0 past the end."""
    if RATES:
        return ticks * rate
    else:
        return tl.maximum(tl.load(log_decay + t * d_t, mask=inside, other=0.0) * _LOG2E, _LOWEST)


@triton.jit
def _ticks(clock, k_t, t, bias, inside, CLOCK: tl.constexpr, SELECT: tl.constexpr):
    if CLOCK:
        ticks = tl.load(clock + t * k_t, mask=inside, other=0.0)
        if SELECT:
            ticks = tl.where(inside, _softplus(ticks + bias), 0.0)
        return ticks
    else:
        return tl.where(inside, 1.0, 0.0)


@triton.jit
def _softplus(x):
    small = tl.exp(-tl.abs(x))
    more = 1.0 + small
    # log(1 + e) to the last digit: what the sum rounded away is the same in both factors.
    log = tl.where(more == 1.0, small, tl.log(more) * (small / tl.where(more == 1.0, 1.0, more - 1.0)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _slope(step):
    """The slope of softplus where it is ``step``: ``1 - exp(-step)``, to the last digit of small steps too."""
    series = step * (1 - step / 2 * (1 - step / 3 * (1 - step / 4 * (1 - step / 5))))
    return tl.where(step < 0.1, series, 1 - tl.exp(-step))


@triton.jit
def _rates(log_decay, d_b, d_h, d_n, sample, n, head, zero, kept, SELECT: tl.constexpr):
    """The rates of a tile, base 2."""
    rate = tl.load(log_decay + sample * d_b + n * d_n + head * d_h + zero, mask=kept, other=0.0)
    if SELECT:
        rate = -tl.exp(rate)
    return tl.maximum(rate * _LOG2E, _LOWEST)


@triton.jit(do_not_specialize=_PLAIN)
def _ends(
    columns, c_b, c_h, c_t, c_k,  # v, or what is wanted of y
    step, s_b, s_h, s_t,
    rows, r_b, r_g, r_t, r_n,  # B, or C
    log_decay, d_b, d_h, d_t, d_n,  # rates: (B or 1, N, H)
    clock, k_b, k_h, k_t,
    bias, a_b,
    left, total,  # (B, Z, N, H, W)
    length, size, spans, groups, heads, width, blocks, zero,
    N: tl.constexpr, RATES: tl.constexpr, CLOCK: tl.constexpr, STEP: tl.constexpr,
    SELECT: tl.constexpr, BACK: tl.constexpr,
    U: tl.constexpr, NR: tl.constexpr, CR: tl.constexpr, CW: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """What a span leaves to the next when nothing enters it, and the decay through all of it; BACK: from the end."""
    block, span, group, sample = _which(blocks, spans, groups)
    n, channel = _tile(block, NR, CR, CW, NL, CL)
    head = group * heads + channel // width
    live, kept = channel < heads * width, n < N
    columns += sample * c_b + head * c_h + (channel % width) * c_k
    rows += sample * r_b + group * r_g + n * r_n
    if RATES:
        rate = _rates(log_decay, d_b, d_h, d_n, sample, n, head, zero, live & kept, SELECT)
    else:
        rate = 0.0
        log_decay += sample * d_b + head * d_h + n * d_n
    if CLOCK:
        clock += sample * k_b + head * k_h
    if STEP == 1:
        step += sample * s_b + head * s_h
    add = 0.0
    if SELECT and not BACK:
        add = tl.load(bias + sample * a_b + head, mask=live, other=0.0)

    state = tl.zeros((NL, CW, NR, CR, CL), tl.float32)
    through = tl.zeros((NL, CW, NR, CR, CL), tl.float32)
    begin = span * size
    end = tl.minimum(begin + size, length)
    for run in range(tl.cdiv(end - begin, U)):
        for u in tl.static_range(U):
            t = begin + (tl.cdiv(end - begin, U) - run) * U - 1 - u if BACK else begin + run * U + u
            inside = live & (t < length)
            ticks = _ticks(clock, k_t, t, add, inside, CLOCK, SELECT and not BACK)
            logs = _logs(log_decay, d_t, ticks, rate, t, inside & kept, RATES)
            column = tl.load(columns + t * c_t, mask=inside, other=0.0)
            row = tl.load(rows + t * r_t, mask=kept & (t < length), other=0.0)
            if STEP == 1:
                column *= tl.load(step + t * s_t, mask=inside, other=0.0)
            elif STEP == 2:
                column *= ticks
            state = tl.exp2(logs) * (state + row * column) if BACK else tl.exp2(logs) * state + row * column
            through += logs
    every = groups * heads * width
    at = (sample * spans + span) * (N * every) + n * every + group * heads * width + channel + zero
    tl.store(left + at, state, mask=live & kept)
    tl.store(total + at, tl.exp2(through), mask=live & kept)


@triton.jit(do_not_specialize=_PLAIN)
def _forward(
    values, v_b, v_h, v_t, v_k,
    step, s_b, s_h, s_t,
    inputs, b_b, b_g, b_t, b_n,
    outputs, c_b, c_g, c_t, c_n,
    log_decay, d_b, d_h, d_t, d_n,  # rates: (B or 1, N, H)
    clock, k_b, k_h, k_t,
    bias, a_b,
    skip, p_b,
    initial, i_b,  # (B or 1, N, H, W)
    left, total,
    mixed, m_b, m_h, m_t, m_k,
    last,  # (B, N, H, W)
    marks,  # (B, T, N, H, W): the state before each run
    length, size, spans, groups, heads, width, blocks, zero,
    N: tl.constexpr, RATES: tl.constexpr, CLOCK: tl.constexpr, STEP: tl.constexpr,
    SELECT: tl.constexpr, SKIP: tl.constexpr, INITIAL: tl.constexpr, MARKS: tl.constexpr,
    U: tl.constexpr, NR: tl.constexpr, CR: tl.constexpr, CW: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """The outputs of a span, and the states that the way back starts from."""
    block, span, group, sample = _which(blocks, spans, groups)
    n, channel = _tile(block, NR, CR, CW, NL, CL)
    head = group * heads + channel // width
    live, kept = channel < heads * width, n < N
    every = groups * heads * width
    entry = n * every + group * heads * width + channel + zero  # of a sample's (N, H, W)
    values += sample * v_b + head * v_h + (channel % width) * v_k
    mixed += sample * m_b + head * m_h + (channel % width) * m_k
    inputs += sample * b_b + group * b_g + n * b_n
    outputs += sample * c_b + group * c_g + n * c_n
    if RATES:
        rate = _rates(log_decay, d_b, d_h, d_n, sample, n, head, zero, live & kept, SELECT)
    else:
        rate = 0.0
        log_decay += sample * d_b + head * d_h + n * d_n
    if CLOCK:
        clock += sample * k_b + head * k_h
    if STEP == 1:
        step += sample * s_b + head * s_h
    add = 0.0
    if SELECT:
        add = tl.load(bias + sample * a_b + head, mask=live, other=0.0)
    if SKIP:
        past = tl.load(skip + sample * p_b + head, mask=live, other=0.0)

    if INITIAL:
        state = tl.load(initial + sample * i_b + entry, mask=live & kept, other=0.0)
    else:
        state = tl.zeros((NL, CW, NR, CR, CL), tl.float32)
    for before in range(span):
        at = (sample * spans + before) * (N * every) + entry
        left_then = tl.load(left + at, mask=live & kept, other=0.0)
        state = tl.load(total + at, mask=live & kept, other=0.0) * state + left_then

    begin = span * size
    end = tl.minimum(begin + size, length)
    for run in range(tl.cdiv(end - begin, U)):
        if MARKS:
            at = (sample * tl.cdiv(length, U) + begin // U + run) * (N * every) + entry
            tl.store(marks + at, state, mask=live & kept)
        for u in tl.static_range(U):
            t = begin + run * U + u
            inside = live & (t < length)
            ticks = _ticks(clock, k_t, t, add, inside, CLOCK, SELECT)
            logs = _logs(log_decay, d_t, ticks, rate, t, inside & kept, RATES)
            column = tl.load(values + t * v_t, mask=inside, other=0.0)
            write = tl.load(inputs + t * b_t, mask=kept & (t < length), other=0.0)
            read = tl.load(outputs + t * c_t, mask=kept & (t < length), other=0.0)
            if STEP == 1:
                column *= tl.load(step + t * s_t, mask=inside, other=0.0)
            elif STEP == 2:
                column *= ticks
            state = tl.exp2(logs) * state + write * column
            out = _over_states(read * state)
            if SKIP:
                out += past * tl.load(values + t * v_t, mask=inside, other=0.0)
            tl.store(mixed + t * m_t, out, mask=inside)
    if span == spans - 1:
        tl.store(last + sample * (every * N) + entry, state, mask=live & kept)


@triton.jit(do_not_specialize=[*_PLAIN, "samples"])
def _backward(
    values, v_b, v_h, v_t, v_k,
    step, s_b, s_h, s_t,
    inputs, b_b, b_g, b_t, b_n,
    outputs, c_b, c_g, c_t, c_n,
    log_decay, d_b, d_h, d_t, d_n,  # rates: (B or 1, N, H)
    clock, k_b, k_h, k_t,
    bias, a_b,
    skip, p_b,
    d_mixed, m_b, m_h, m_t, m_k,
    d_last,  # (B, N, H, W)
    left, total, marks,
    d_values, d_step, d_clock, w_b, w_h, w_t, w_k,  # (B, H, L, W), alike
    d_inputs, d_outputs,  # (K, B, G, L, N)
    d_decay,  # of rates: (Z, B, N, H, W); else (B, H, W, L, N)
    d_initial,  # (B, N, H, W)
    d_skip,  # (Z, B, H, W)
    samples, length, size, spans, groups, heads, width, blocks, zero,
    N: tl.constexpr, RATES: tl.constexpr, CLOCK: tl.constexpr, STEP: tl.constexpr,
    SELECT: tl.constexpr, SKIP: tl.constexpr, LAST: tl.constexpr, INITIAL: tl.constexpr,
    U: tl.constexpr, NR: tl.constexpr, CR: tl.constexpr, CW: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """The gradients of a span's tokens, run by run from its end."""
    block, span, group, sample = _which(blocks, spans, groups)
    n, channel = _tile(block, NR, CR, CW, NL, CL)
    head = group * heads + channel // width
    live, kept = channel < heads * width, n < N
    every = groups * heads * width
    entry = n * every + group * heads * width + channel + zero
    whole = sample * (every * N)
    values += sample * v_b + head * v_h + (channel % width) * v_k
    d_mixed += sample * m_b + head * m_h + (channel % width) * m_k
    own = sample * w_b + head * w_h + (channel % width) * w_k
    d_values += own
    d_clock += own
    d_step += own
    inputs += sample * b_b + group * b_g + n * b_n
    outputs += sample * c_b + group * c_g + n * c_n
    part = ((block * samples + sample) * groups + group) * length * N + n
    d_inputs += part
    d_outputs += part
    if RATES:
        rate = _rates(log_decay, d_b, d_h, d_n, sample, n, head, zero, live & kept, SELECT)
    else:
        rate = 0.0
        log_decay += sample * d_b + head * d_h + n * d_n
    if CLOCK:
        clock += sample * k_b + head * k_h
    if STEP == 1:
        step += sample * s_b + head * s_h
    if SKIP:
        past = tl.load(skip + sample * p_b + head, mask=live, other=0.0)
        d_past = tl.zeros((1, CW, 1, CR, CL), tl.float32)
    if RATES:
        d_rate = tl.zeros((NL, CW, NR, CR, CL), tl.float32)

    # What the tokens behind want of the state: exp(a_{i+1}) dS_{i+1}.
    if LAST:
        wanted = tl.load(d_last + whole + entry, mask=live & kept, other=0.0)
    else:
        wanted = tl.zeros((NL, CW, NR, CR, CL), tl.float32)
    for behind in range(spans - 1 - span):
        at = (sample * spans + spans - 1 - behind) * (N * every) + entry
        left_then = tl.load(left + at, mask=live & kept, other=0.0)
        wanted = tl.load(total + at, mask=live & kept, other=0.0) * wanted + left_then

    begin = span * size
    end = tl.minimum(begin + size, length)
    runs = tl.cdiv(end - begin, U)
    for back in range(runs):
        run = runs - 1 - back
        at = (sample * tl.cdiv(length, U) + begin // U + run) * (N * every) + entry
        state = tl.load(marks + at, mask=live & kept, other=0.0)
        before = ()
        decays = ()
        for u in tl.static_range(U):
            t = begin + run * U + u
            inside = live & (t < length)
            ticks = _ticks(clock, k_t, t, 0.0, inside, CLOCK, False)
            logs = _logs(log_decay, d_t, ticks, rate, t, inside & kept, RATES)
            column = tl.load(values + t * v_t, mask=inside, other=0.0)
            write = tl.load(inputs + t * b_t, mask=kept & (t < length), other=0.0)
            d_mix = tl.load(d_mixed + t * m_t, mask=inside, other=0.0)
            if STEP == 1:
                column *= tl.load(step + t * s_t, mask=inside, other=0.0)
            elif STEP == 2:
                column *= ticks
            before = before + (state,)  # type: ignore[assignment]
            decays = decays + (tl.exp2(logs),)  # type: ignore[assignment]
            state = decays[u] * state + write * column
            tl.store(d_outputs + t * N, _over_channels(state * d_mix), mask=kept & (t < length))
        for v in tl.static_range(U):
            t = begin + run * U + U - 1 - v
            inside = live & (t < length)
            ticks = _ticks(clock, k_t, t, 0.0, inside, CLOCK, False)
            value = tl.load(values + t * v_t, mask=inside, other=0.0)
            write = tl.load(inputs + t * b_t, mask=kept & (t < length), other=0.0)
            read = tl.load(outputs + t * c_t, mask=kept & (t < length), other=0.0)
            d_mix = tl.load(d_mixed + t * m_t, mask=inside, other=0.0)
            weight = ticks
            if STEP == 1:
                weight = tl.load(step + t * s_t, mask=inside, other=0.0)
            d_state = read * d_mix + wanted
            if STEP > 0:
                tl.store(d_inputs + t * N, _over_channels(d_state * (value * weight)), mask=kept & (t < length))
            else:
                tl.store(d_inputs + t * N, _over_channels(d_state * value), mask=kept & (t < length))
            d_column = _over_states(write * d_state)
            wanted = decays[U - 1 - v] * d_state
            d_logs = wanted * before[U - 1 - v]
            if RATES:
                d_rate += ticks * d_logs
                if CLOCK:
                    d_ticks = _over_states(rate * d_logs) * (1.0 / _LOG2E)
                    if STEP == 2:
                        d_ticks += value * d_column
                    if SELECT:
                        d_ticks *= _slope(ticks)
                    tl.store(d_clock + t * w_t, d_ticks, mask=inside)
            else:
                at = ((sample * groups + group) * heads * width + channel) * length * N + t * N + n
                tl.store(d_decay + at, d_logs, mask=inside & kept)
            if STEP == 1:
                tl.store(d_step + t * w_t, value * d_column, mask=inside)
            if STEP > 0:
                d_column *= weight
            if SKIP:
                d_column += past * d_mix
                d_past += value * d_mix
            tl.store(d_values + t * w_t, d_column, mask=inside)
    if RATES:
        if SELECT:
            d_rate *= rate * (1.0 / _LOG2E)
        part = (span.to(tl.int64) * samples) * (every * N) + whole
        tl.store(d_decay + part + entry, d_rate, mask=live & kept)
    if SKIP:
        part = (span.to(tl.int64) * samples + sample) * every + group * heads * width
        tl.store(d_skip + part + channel, d_past, mask=live)
    if INITIAL:  # a constant decides alone what is compiled
        if span == 0:
            tl.store(d_initial + whole + entry, wanted, mask=live & kept)


# ------------------------------------------------------------------ their launches


class Tile(NamedTuple):
    """How a program's states lie: a thread's states and channels, warps, lanes over states and over channels."""

    NR: int
    CR: int
    CW: int
    NL: int
    CL: int

    @property
    def channels(self) -> int:
        return self.CR * self.CW * self.CL


class Plan(NamedTuple):
    """What was judged to be good, not measured against others; no result depends on it."""

    run: int  # U
    ahead: Tile
    back: Tile
    spans: tuple[int, int]  # Z of the way ahead and of the way back, at most


@cache
def plan(states: int, batch: int, groups: int, channels: int, length: int, chunk: int | None, cores: int) -> Plan:
    """A plan for the shape; ``cores`` are the GPU's multiprocessors, ``chunk`` the tokens of a span if one is given."""
    padded = 1 << (states - 1).bit_length()
    # Ahead, all states of a channel in one thread: no exchange at all, and B and C come four numbers at a time.
    lanes = min(32, max(1, padded // 16))
    ahead = Tile(padded // lanes, 1, 1, lanes, 32 // lanes)
    # Back there are sums over both: a few of each in a thread.
    lanes = min(32, max(min(4, padded), padded // 4))
    back = Tile(padded // lanes, 2 if lanes >= 4 else 1, 1, lanes, 32 // lanes)
    run = 8 if back.NR <= 4 else 4

    def spans(tile: Tile, warps: int) -> int:
        if chunk is not None:
            return cdiv(length, chunk)
        programs = batch * groups * cdiv(channels, tile.channels)
        return max(1, min(cores * warps // programs, length // 32, 64))

    return Plan(run, ahead, back, (spans(ahead, 16), spans(back, 8)))


def scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    clock: Tensor | None,
    step: Tensor | None,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
    planned: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """``diagonal_scan``; arguments as there, of float32 and with at least one token, sample and head."""
    tied = step is not None and step is clock and log_decay.shape[2] == 1
    if log_decay.shape[2] == 1:
        log_decay = log_decay.squeeze(2).mT.contiguous()
    elif clock is not None:
        log_decay, clock = log_decay * clock.unsqueeze(-1), None
    if tied:
        step = None
    if initial is not None:
        initial = initial.permute(0, 3, 1, 2).contiguous()
    return _scanned((values, outputs, inputs, log_decay, clock, step, initial, None, None), tied, chunk, planned)


def select_scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    A_log: Tensor,
    raw: Tensor,
    bias: Tensor,
    skip: Tensor,
    *,
    chunk: int | None = None,
    planned: Plan | None = None,
) -> Tensor:
    """The product of S6, with what its parameters say of it: the scan whose clock and step are ``softplus(raw + bias)``
    and whose rates are ``-exp(A_log)``, and ``skip v``.

    Args:
        values, outputs, inputs: as in ``diagonal_scan``.
        A_log: ``(H, N)``.
        raw: ``(B, H, L)``.
        bias, skip: ``(H,)``.

    Returns:
        ``(B, H, L, W)``.
    """
    given = (values, outputs, inputs, A_log.mT.unsqueeze(0), raw, None, None, bias.unsqueeze(0), skip.unsqueeze(0))
    return _scanned(given, True, chunk, planned)[0]


def _scanned(tensors: Factors, tied: bool, chunk: int | None, planned: Plan | None) -> tuple[Tensor, Tensor]:
    values, outputs, *_ = tensors
    assert values is not None and outputs is not None
    if planned is None:
        groups, heads = outputs.shape[1], values.shape[1]
        channels = heads // groups * values.shape[3]
        planned = plan(
            outputs.shape[3], joint_batch(tensors), groups, channels, values.shape[2], chunk, _cores(values.device)
        )
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    mixed, last, _ = call(_Scan, *tensors, tied, wanted, planned)
    return mixed, last.permute(0, 2, 3, 1)


# values, outputs, inputs, log_decay, clock, step, initial; bias and skip, (B or 1, H), of ``select_scan``
Factors = Sequence[Tensor | None]


class _Scan(Function):
    """y, the last state ``(B, N, H, W)``, and the states before the runs ``(B, T, N, H, W)``, or none of them.

    As in ``scan``, but for rates ``(B or 1, N, H)`` and the initial state ``(B or 1, N, H, W)``; ``tied`` says that the
    clock is the step as well. With a bias rates and clock are those of ``select_scan``.
    """

    @staticmethod
    def forward(
        values: Tensor,
        outputs: Tensor,
        inputs: Tensor,
        log_decay: Tensor,
        clock: Tensor | None,
        step: Tensor | None,
        initial: Tensor | None,
        bias: Tensor | None,
        skip: Tensor | None,
        tied: bool,
        keep: bool,
        planned: Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (values, outputs, inputs, log_decay, clock, step, initial, bias, skip)
        return _run_ahead(tensors, tied, keep, planned)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.tied, ctx.keep, ctx.planned = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor | None, d_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        *tensors, marks = ctx.saved_tensors
        if d_mixed is None:
            d_mixed = tensors[0].new_zeros(()).expand(joint_batch(tensors), *tensors[0].shape[1:])
        none = (None, None, None)
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted
            wanted = [t for t in tensors if t is not None and t.requires_grad]
            plain = _plain(tensors, ctx.tied)
            d_last = torch.zeros_like(plain[1]) if d_last is None else d_last
            found = torch.autograd.grad(plain, wanted, (d_mixed, d_last), create_graph=True, materialize_grads=True)
            grads = iter(found)
            return (*(None if t is None or not t.requires_grad else next(grads) for t in tensors), *none)
        with full_precision(d_mixed.device):
            if not ctx.keep:
                marks = _run_ahead(tensors, ctx.tied, True, ctx.planned)[2]
            return (*_run_back(tensors, ctx.tied, marks, d_mixed, d_last, ctx.planned), *none)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        *tensors, tied, keep, planned = args
        size = info.batch_size
        first = [
            None if t is None else t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=False)
        ]
        batch = max(t.shape[1] for t in first if t is not None)
        wide = (None if t is None else t.expand(size, batch, *t.shape[2:]).flatten(0, 1) for t in first)
        mixed, last, marks = call(_Scan, *wide, tied, keep, planned)
        split = (size, batch)
        parts = (mixed.unflatten(0, split), last.unflatten(0, split), marks.unflatten(0, split) if keep else marks)
        return parts, (0, 0, 0 if keep else None)


@cache
def _cores(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _strides(tensor: Tensor | None, batch: int, count: int) -> tuple[int, ...]:
    """Of a tensor of ``count`` axes, that of the samples 0 where all share one; of no tensor, 0."""
    if tensor is None:
        return (0,) * count
    own = tensor.stride()
    return own if tensor.shape[0] == batch else (0, *own[1:])


def _cut(length: int, spans: int, run: int) -> tuple[int, int]:
    """Tokens of a span, in whole runs, and how many spans that makes."""
    size = cdiv(cdiv(length, spans), run) * run
    return size, cdiv(length, size)


class _Layout(NamedTuple):
    """What all kernels are told alike."""

    values: tuple[Any, ...]
    step: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    decay: tuple[Any, ...]  # log decay, clock and bias
    modes: dict[str, Any]


def _layout(tensors: Factors, tied: bool, batch: int) -> _Layout:
    values, outputs, inputs, log_decay, clock, step, _, bias, _ = tensors
    assert values is not None and outputs is not None and log_decay is not None
    rates = log_decay.dim() == 3
    decay_strides = _strides(log_decay, batch, 0)
    own = decay_strides
    if rates:
        own = (decay_strides[0], decay_strides[2], 0, decay_strides[1])
    decay = (log_decay, *own, clock, *_strides(clock, batch, 3), bias, *_strides(bias, batch, 1)[:1])
    modes = {
        "N": outputs.shape[3],
        "RATES": rates,
        "CLOCK": clock is not None,
        "STEP": 2 if tied else 0 if step is None else 1,
        "SELECT": bias is not None,
    }
    return _Layout(
        (values, *_strides(values, batch, 4)),
        (step, *_strides(step, batch, 3)),
        (inputs, *_strides(inputs, batch, 4)),
        (outputs, *_strides(outputs, batch, 4)),
        decay,
        modes,
    )


def _run_ahead(tensors: Factors, tied: bool, keep: bool, planned: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and, if they are to be kept, the states before the runs."""
    values, outputs, *_, initial, _, skip = tensors
    assert values is not None and outputs is not None
    batch, (heads, length, width) = joint_batch(tensors), values.shape[1:]
    groups, states = outputs.shape[1], outputs.shape[3]
    repeat, run, tile = heads // groups, planned.run, planned.ahead
    size, spans = _cut(length, planned.spans[0], run)
    blocks = cdiv(repeat * width, tile.channels)
    mixed = torch.empty_like(values) if values.shape[0] == batch else values.new_empty(batch, heads, length, width)
    last = values.new_empty(batch, states, heads, width)
    marks = values.new_empty((batch, cdiv(length, run), states, heads, width) if keep else (0,))
    args = _layout(tensors, tied, batch)
    sizes = (length, size, spans, groups, repeat, width, blocks, 0)
    shape = {**args.modes, "U": run, **tile._asdict(), "num_warps": tile.CW}
    grid = (blocks * spans * groups * batch,)
    left = total = values
    with on_device(values.device):
        if spans > 1:
            left, total = (values.new_empty(batch, spans, states, heads, width) for _ in range(2))
            _ends[grid](*args.values, *args.step, *args.inputs, *args.decay, left, total, *sizes, BACK=False, **shape)
        more = (skip, *_strides(skip, batch, 1)[:1], initial, *_strides(initial, batch, 1)[:1])
        _forward[grid](
            *args.values, *args.step, *args.inputs, *args.outputs, *args.decay, *more, left, total,
            mixed, *mixed.stride(), last, marks, *sizes,
            SKIP=skip is not None, INITIAL=initial is not None, MARKS=keep, **shape,
        )  # fmt: skip
    return mixed, last, marks


def _run_back(
    tensors: Factors,
    tied: bool,
    marks: Tensor,
    d_mixed: Tensor,
    d_last: Tensor | None,
    planned: Plan,
) -> tuple[Tensor | None, ...]:
    """The gradients of the nine tensors of ``_Scan``."""
    values, outputs, inputs, log_decay, clock, step, initial, bias, skip = tensors
    assert values is not None and outputs is not None and inputs is not None and log_decay is not None
    if bias is not None and clock is not None:  # once: here several threads share a channel
        clock = F.softplus(clock + bias.unsqueeze(-1), threshold=40.0)
        tensors = (*tensors[:3], log_decay.contiguous(), clock, *tensors[5:])
    batch, (heads, length, width) = joint_batch(tensors), values.shape[1:]
    groups, states = outputs.shape[1], outputs.shape[3]
    repeat, run, tile = heads // groups, planned.run, planned.back
    size, spans = _cut(length, planned.spans[1], run)
    blocks = cdiv(repeat * width, tile.channels)
    args = _layout(tensors, tied, batch)
    rates = args.modes["RATES"]

    d_values = torch.empty_like(values) if values.shape[0] == batch else values.new_empty(batch, *values.shape[1:])
    d_clock = d_values if clock is None else torch.empty_like(d_values)
    d_step = d_values if step is None else torch.empty_like(d_values)
    d_rows = values.new_empty(2, blocks, batch, groups, length, states)
    if rates:
        d_decay = values.new_empty(spans, batch, states, heads, width)
    else:
        d_decay = values.new_empty(batch, heads, width, length, states)
    d_initial = None if initial is None else values.new_empty(batch, states, heads, width)
    d_skip = None if skip is None else values.new_empty(spans, batch, heads, width)
    d_last = None if d_last is None else d_last.contiguous()

    sizes = (length, size, spans, groups, repeat, width, blocks, 0)
    shape = {**args.modes, "U": run, **tile._asdict(), "num_warps": tile.CW}
    grid = (blocks * spans * groups * batch,)
    left = total = values
    wanted = (d_mixed, *_strides(d_mixed, batch, 4))
    with on_device(values.device):
        if spans > 1:
            left, total = (values.new_empty(batch, spans, states, heads, width) for _ in range(2))
            plain = {**shape, "STEP": 0}
            _ends[grid](*wanted, None, 0, 0, 0, *args.outputs, *args.decay, left, total, *sizes, BACK=True, **plain)
        _backward[grid](
            *args.values, *args.step, *args.inputs, *args.outputs, *args.decay, skip, *_strides(skip, batch, 1)[:1],
            *wanted, d_last, left, total, marks, d_values, d_step, d_clock, *d_values.stride(), d_rows[0], d_rows[1],
            d_decay, d_initial, d_skip, batch, *sizes,
            SKIP=skip is not None, LAST=d_last is not None, INITIAL=initial is not None, **shape,
        )  # fmt: skip

    def of_columns(grad: Tensor) -> Tensor:  # (B, H, L, W), of a factor without W
        return grad.squeeze(-1) if width == 1 else grad.sum(-1)

    d_inputs, d_outputs = (d_rows.squeeze(1) if blocks == 1 else d_rows.sum(1)).unbind(0)
    if not rates:
        d_decay = d_decay.squeeze(2) if width == 1 else d_decay.sum(2)
    elif log_decay.shape[0] == batch:
        d_decay = d_decay.sum((0, 4))
    else:
        d_decay = d_decay.sum((0, 1, 4)).unsqueeze(0)
    d_raw = None if clock is None else of_columns(d_clock)
    return (
        _shared(d_values, values),
        _shared(d_outputs, outputs),
        _shared(d_inputs, inputs),
        _shared(d_decay, log_decay),
        _shared(d_raw, clock),
        _shared(None if step is None else of_columns(d_step), step),
        _shared(d_initial, initial),
        None if bias is None or d_raw is None else _over(d_raw, bias, (2,)),
        None if skip is None or d_skip is None else _over(d_skip.transpose(0, 1), skip, (1, 3)),
    )


def _shared(grad: Tensor | None, factor: Tensor | None) -> Tensor | None:
    """The gradient of a factor that all samples may share."""
    if grad is None or factor is None or grad.shape[0] == factor.shape[0]:
        return grad
    return grad.sum(0, keepdim=True)


def _over(grad: Tensor, factor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The gradient of a factor ``(B or 1, H)`` that is the same along the axes."""
    return grad.sum(axes) if grad.shape[0] == factor.shape[0] else grad.sum((0, *axes)).unsqueeze(0)


def _plain(tensors: Factors, tied: bool) -> tuple[Tensor, Tensor]:
    """What ``_Scan`` computes, in operations that can be differentiated any number of times."""
    values, outputs, inputs, log_decay, clock, step, initial, bias, skip = tensors
    assert values is not None and outputs is not None and inputs is not None and log_decay is not None
    if bias is not None and clock is not None:
        log_decay, clock = -log_decay.exp(), F.softplus(clock + bias.unsqueeze(-1), threshold=40.0)
    log_decay = log_decay.mT.unsqueeze(2) if log_decay.dim() == 3 else log_decay
    step = clock if tied else step
    batch = joint_batch(tensors)
    written = values if step is None else values * step.unsqueeze(-1)
    written = written.expand(batch, *written.shape[1:])
    start = None if initial is None else initial.permute(0, 2, 3, 1)
    mixed, last = by_chunks(written, outputs, inputs, log_decay, clock, start)
    if skip is not None:
        mixed = mixed + skip[:, :, None, None] * values
    return mixed, last.permute(0, 3, 1, 2)
