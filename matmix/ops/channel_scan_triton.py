# mypy: allow-untyped-defs
"""``channel_scan`` on a GPU: Triton kernels for the product of chunks, and for its gradients.

    S_i[n] = exp(a_i[n]) S_{i-1}[n] + B_i[n] v_i,   y_i = sum_n C_i[n] S_i[n]

Chunks of Q tokens give states to those behind them; blocks of 16 tokens give the outputs, one program each. A block
sees the state that enters its chunk, the tokens between the two, and itself. From its border to both sides the table
of the matrix is a product of factors that are at most 1; only in the block itself the entries are made one by one:
three launches, for what chunks add to the state, for the states at their borders, and for the outputs.

The way back is the same with B and C, v and dy exchanged. D being the state of that way, and T the table,

    dv = T^T dy + exp(..) B D
    dC = (dy v^T o exp(..)) B + exp(..) dy S^T,   dB = (dy v^T o exp(..))^T C + exp(..) v D^T

and what is wanted of the log decays is the sum, from a token to the end, of ``C dC - B dB`` for every n. The tokens of
one place cancel there and are left out. Only the arguments are kept; S and D are made again and share their launches.

Exponents are those of ``matmix.ops.channel_scan``: sums of log decays over a run of tokens within one chunk, added up
and subtracted in float64 (between two tokens of a block, in pairs of float32), never positive. Products of float32
take three passes over tf32, which is float32 to a digit or so; those of shorter numbers take one.

Legend: B batch, H heads, L tokens in Z chunks of Q and blocks of P, N state, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matmix.ops.channel_scan import by_tables
from matmix.ops.function import Function, call
from matmix.ops.gpu import cdiv, on_device, power_of_2
from matmix.ops.precision import full_precision
from matmix.ops.sizes import all_samples

LOWEST = -128.0  # stands for a log decay of -inf: exp of it is 0 in float32, and sums of it can be subtracted
_LOWEST = tl.constexpr(LOWEST)
_PLAIN = ["length", "chunks", "heads"]  # no value of these gets a kernel of its own


# ------------------------------------------------------------------ pieces


@triton.jit
def _stream(heads):
    """The head and the sample of a program."""
    return tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)


@triton.jit
def _tile(pointer, t, inside, t_stride, k, kept, k_stride):
    """``(T, K)`` numbers of tokens t at places k."""
    at = pointer + t[:, None] * t_stride + k[None, :] * k_stride
    return tl.load(at, mask=inside[:, None] & kept[None, :], other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, t, inside, t_stride, k, kept, k_stride, numbers):
    at = pointer + t[:, None] * t_stride + k[None, :] * k_stride
    tl.store(at, numbers, mask=inside[:, None] & kept[None, :])


@triton.jit
def _state(pointer, n, w, states, width):
    """``(N, W)`` numbers of a state."""
    kept = (n < states)[:, None] & (w < width)[None, :]
    return tl.load(pointer + n[:, None] * width + w[None, :], mask=kept, other=0.0)


@triton.jit
def _upto(log_decay, t, inside, a_t, n, kept, a_n):
    """The log decays from the first of some tokens, each included, ``(T, N)``; and those of all, ``(N,)``."""
    steps = tl.maximum(_tile(log_decay, t, inside, a_t, n, kept, a_n), _LOWEST).to(tl.float64)
    return tl.cumsum(steps, 0), tl.sum(steps, 0)


@triton.jit
def _exp(exponent):
    return tl.exp(exponent.to(tl.float32))


@triton.jit
def _between(upto, P: tl.constexpr, DIAGONAL: tl.constexpr):
    """``exp(a_{j+1} + ... + a_i)`` at (i, j, n) for i > j, and 1 for i = j where DIAGONAL; else 0."""
    row = tl.arange(0, P)[:, None, None]
    column = tl.arange(0, P)[None, :, None]
    # The difference of two float64, to the digits that float32 keeps of it.
    high = upto.to(tl.float32)
    low = (upto - high.to(tl.float64)).to(tl.float32)
    exponent = (high[:, None, :] - high[None, :, :]) + (low[:, None, :] - low[None, :, :])
    keep = (row >= column) if DIAGONAL else (row > column)
    return tl.exp(tl.where(keep, tl.minimum(exponent, 0.0), float("-inf")))


@triton.jit
def _dot(x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def _after(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


# ------------------------------------------------------------------ kernels


@triton.jit(do_not_specialize=_PLAIN)
def _states(
    inputs, b_b, b_h, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_h, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t, a_n,
    states, total,  # (1 or 2, B, H, Z + 1, N, W), (B, H, Z, N)
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state, at the border behind it; and on the way back, at the border before it."""
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head, sample = _stream(heads)
    blocks = tl.cdiv(N, BN) * tl.cdiv(W, BW)
    way, block = tl.program_id(2) // blocks, tl.program_id(2) % blocks
    n = block // tl.cdiv(W, BW) * BN + tl.arange(0, BN)
    w = block % tl.cdiv(W, BW) * BW + tl.arange(0, BW)
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    upto, end = _upto(log_decay + sample * a_b + head * a_h, t, inside, a_t, n, n < N, a_n)
    if way == 0:
        left = _tile(inputs + sample * b_b + head * b_h, t, inside, b_t, n, n < N, b_n) * _exp(end[None, :] - upto)
        right = _tile(values + sample * v_b + head * v_h, t, inside, v_t, w, w < W, v_w)
    else:
        left = _tile(outputs + sample * c_b + head * c_h, t, inside, c_t, n, n < N, c_n) * _exp(upto)
        right = _tile(d_mixed + sample * g_b + head * g_h, t, inside, g_t, w, w < W, g_w)
    added = _dot(tl.trans(left), right, PRECISION)
    border = (way * tl.num_programs(1).to(tl.int64) + stream) * (chunks + 1) + chunk + 1 - way
    at = states + border * (N * W) + n[:, None] * W + w[None, :]
    tl.store(at, added, mask=(n < N)[:, None] & (w < W)[None, :])
    if (way == 0) & (block % tl.cdiv(W, BW) == 0):
        tl.store(total + (stream * chunks + chunk) * N + n, _exp(end), mask=n < N)


@triton.jit(do_not_specialize=["chunks"])
def _carry(
    states, total, wanted, last,
    chunks,
    N: tl.constexpr, W: tl.constexpr, WANTED: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """In place: from what chunks add to the states at all borders. Way 1 goes from the end.

    The recurrence is short of work and long of waiting, so some chunks are loaded and joined at a time.
    """
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = entry < N * W
    stream, way = tl.program_id(1).to(tl.int64), tl.program_id(2)
    states += (way * tl.num_programs(1).to(tl.int64) + stream) * (chunks + 1) * (N * W) + entry
    total += stream * chunks * N + entry // W
    state = tl.zeros((BLOCK,), tl.float32)
    if WANTED:  # known to the compiler, which the way is not
        if way == 1:
            state = tl.load(wanted + stream * (N * W) + entry, mask=kept, other=0.0)
    tl.store(states + way * chunks * (N * W), state, mask=kept)
    order = tl.arange(0, AHEAD)
    for start in range(0, chunks, AHEAD):
        index = start + order
        there = (index < chunks)[:, None] & kept[None, :]
        chunk = tl.where(way == 0, index, chunks - 1 - index)
        at = states[None, :] + ((chunk + 1 - way) * (N * W))[:, None]
        added = tl.load(at, mask=there, other=0.0)
        decay = tl.load(total[None, :] + (chunk * N)[:, None], mask=there, other=1.0)
        decay, added = tl.associative_scan((decay, added), 0, _after)
        reached = decay * state[None, :] + added
        tl.store(at, reached, mask=there)
        state = tl.sum(tl.where((order == AHEAD - 1)[:, None], reached, 0.0), 0)
    if LAST:
        tl.store(last + stream * (N * W) + entry, state, mask=kept)


@triton.jit(do_not_specialize=_PLAIN)
def _outputs(
    inputs, b_b, b_h, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_h, c_t, c_n,
    log_decay, a_b, a_h, a_t, a_n,
    states,
    mixed, m_b, m_h, m_t, m_w,
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, place, stream = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P), tl.program_id(1).to(tl.int64)
    head, sample = _stream(heads)
    w = tl.program_id(2) * BW + tl.arange(0, BW)
    own = tl.program_id(0) * P + tl.arange(0, P)
    inside = own < length
    order = tl.arange(0, Q)
    before = chunk * Q + order
    earlier = (order < place * P) & (before < length)
    inputs += sample * b_b + head * b_h
    outputs += sample * c_b + head * c_h
    values += sample * v_b + head * v_h
    log_decay += sample * a_b + head * a_h
    states += (stream * (chunks + 1) + chunk) * (N * W)
    far = tl.zeros((P, Q), tl.float32)  # the table at (i, j)
    near = tl.zeros((P, P), tl.float32)
    out = tl.zeros((P, BW), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        read = _tile(outputs, own, inside, c_t, n, n < N, c_n)
        upto, _ = _upto(log_decay, own, inside, a_t, n, n < N, a_n)
        past, border = _upto(log_decay, before, earlier, a_t, n, n < N, a_n)
        write = _tile(inputs, before, earlier, b_t, n, n < N, b_n) * _exp(border[None, :] - past)
        far += _dot(read * _exp(upto), tl.trans(write), PRECISION)
        out += _dot(read * _exp(border[None, :] + upto), _state(states, n, w, N, W), PRECISION)
        write = _tile(inputs, own, inside, b_t, n, n < N, b_n)
        near += tl.sum(read[:, None, :] * write[None, :, :] * _between(upto, P, True), 2)
    out += _dot(far, _tile(values, before, earlier, v_t, w, w < W, v_w), PRECISION)
    out += _dot(near, _tile(values, own, inside, v_t, w, w < W, v_w), PRECISION)
    _put(mixed + sample * m_b + head * m_h, own, inside, m_t, w, w < W, m_w, out)


@triton.jit(do_not_specialize=_PLAIN)
def _d_values(
    inputs, b_b, b_h, b_t, b_n,
    outputs, c_b, c_h, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t, a_n,
    back,
    d_values, m_b, m_h, m_t, m_w,
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, place, stream = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P), tl.program_id(1).to(tl.int64)
    head, sample = _stream(heads)
    w = tl.program_id(2) * BW + tl.arange(0, BW)
    own = tl.program_id(0) * P + tl.arange(0, P)
    inside = own < length
    order = tl.arange(0, Q)
    behind = chunk * Q + order
    later = (order >= place * P + P) & (behind < length)
    inputs += sample * b_b + head * b_h
    outputs += sample * c_b + head * c_h
    d_mixed += sample * g_b + head * g_h
    log_decay += sample * a_b + head * a_h
    back += (stream * (chunks + 1) + chunk + 1) * (N * W)
    far = tl.zeros((P, Q), tl.float32)  # the table at (i, j), its columns first
    near = tl.zeros((P, P), tl.float32)  # its rows first
    out = tl.zeros((P, BW), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        write = _tile(inputs, own, inside, b_t, n, n < N, b_n)
        upto, border = _upto(log_decay, own, inside, a_t, n, n < N, a_n)
        next, end = _upto(log_decay, behind, later, a_t, n, n < N, a_n)
        read = _tile(outputs, behind, later, c_t, n, n < N, c_n) * _exp(next)
        rest = border[None, :] - upto
        far += _dot(write * _exp(rest), tl.trans(read), PRECISION)
        out += _dot(write * _exp(rest + end[None, :]), _state(back, n, w, N, W), PRECISION)
        read = _tile(outputs, own, inside, c_t, n, n < N, c_n)
        near += tl.sum(read[:, None, :] * write[None, :, :] * _between(upto, P, True), 2)
    out += _dot(far, _tile(d_mixed, behind, later, g_t, w, w < W, g_w), PRECISION)
    out += _dot(tl.trans(near), _tile(d_mixed, own, inside, g_t, w, w < W, g_w), PRECISION)
    _put(d_values + sample * m_b + head * m_h, own, inside, m_t, w, w < W, m_w, out)


@triton.jit(do_not_specialize=_PLAIN)
def _d_factors(
    inputs, b_b, b_h, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_h, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t, a_n,
    states, back,
    d_inputs, d_outputs, flow, m_b, m_h, m_t, m_n,  # (B, H, L, N), alike; flow: C dC - B dB
    sums,  # of the flow of a block: (B, H, L / P, N)
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, place, stream = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P), tl.program_id(1).to(tl.int64)
    head, sample = _stream(heads)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    own = tl.program_id(0) * P + tl.arange(0, P)
    inside = own < length
    order = tl.arange(0, Q)
    all = chunk * Q + order
    earlier = (order < place * P) & (all < length)
    later = (order >= place * P + P) & (all < length)
    inputs += sample * b_b + head * b_h
    outputs += sample * c_b + head * c_h
    values += sample * v_b + head * v_h
    d_mixed += sample * g_b + head * g_h
    log_decay += sample * a_b + head * a_h
    states += (stream * (chunks + 1) + chunk) * (N * W)
    back += (stream * (chunks + 1) + chunk + 1) * (N * W)

    d_read = tl.zeros((P, BN), tl.float32)
    d_write = tl.zeros((P, BN), tl.float32)
    far_read = tl.zeros((P, Q), tl.float32)  # dy_i . v_j at (own i, earlier j)
    far_write = tl.zeros((P, Q), tl.float32)  # at (own j, later i)
    near = tl.zeros((P, P), tl.float32)  # at (own i, own j)
    same = tl.zeros((P,), tl.float32)
    for start in range(0, W, BW):
        w = start + tl.arange(0, BW)
        value = _tile(values, own, inside, v_t, w, w < W, v_w)
        d_mix = _tile(d_mixed, own, inside, g_t, w, w < W, g_w)
        far_read += _dot(d_mix, tl.trans(_tile(values, all, earlier, v_t, w, w < W, v_w)), PRECISION)
        far_write += _dot(value, tl.trans(_tile(d_mixed, all, later, g_t, w, w < W, g_w)), PRECISION)
        near += _dot(d_mix, tl.trans(value), PRECISION)
        same += tl.sum(d_mix * value, 1)
        d_read += _dot(d_mix, tl.trans(_state(states, n, w, N, W)), PRECISION)
        d_write += _dot(value, tl.trans(_state(back, n, w, N, W)), PRECISION)

    past, before = _upto(log_decay, all, earlier, a_t, n, n < N, a_n)
    write = _tile(inputs, all, earlier, b_t, n, n < N, b_n) * _exp(before[None, :] - past)
    d_read = d_read * _exp(before)[None, :] + _dot(far_read, write, PRECISION)
    next, behind = _upto(log_decay, all, later, a_t, n, n < N, a_n)
    read = _tile(outputs, all, later, c_t, n, n < N, c_n) * _exp(next)
    d_write = d_write * _exp(behind)[None, :] + _dot(far_write, read, PRECISION)

    upto, end = _upto(log_decay, own, inside, a_t, n, n < N, a_n)
    read = _tile(outputs, own, inside, c_t, n, n < N, c_n)
    write = _tile(inputs, own, inside, b_t, n, n < N, b_n)
    pairs = near[:, :, None] * _between(upto, P, False)
    d_read = d_read * _exp(upto) + tl.sum(pairs * write[None, :, :], 1)
    d_write = d_write * _exp(end[None, :] - upto) + tl.sum(pairs * read[:, None, :], 0)
    flows = read * d_read - write * d_write
    at = sample * m_b + head * m_h
    _put(flow + at, own, inside, m_t, n, n < N, m_n, flows)
    _put(d_outputs + at, own, inside, m_t, n, n < N, m_n, d_read + same[:, None] * write)
    _put(d_inputs + at, own, inside, m_t, n, n < N, m_n, d_write + same[:, None] * read)
    at = (stream * tl.num_programs(0) + tl.program_id(0)) * N
    tl.store(sums + at + n, tl.sum(flows.to(tl.float64), 0), mask=n < N)


@triton.jit(do_not_specialize=["blocks"])
def _behind(
    sums, last, wanted, l_s,  # last: (B H, N, W), l_s apart
    blocks,
    N: tl.constexpr, W: tl.constexpr, WANTED: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """In place: from the sums of blocks to those of all that is behind them."""
    stream = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    found = tl.zeros((BN,), tl.float64)
    if WANTED:
        for start in range(0, W, BW):
            w = start + tl.arange(0, BW)
            state = _state(last + stream * l_s, n, w, N, W).to(tl.float64)
            found += tl.sum(state * _state(wanted + stream * (N * W), n, w, N, W).to(tl.float64), 1)
    sums += stream * blocks * N
    for start in range(0, blocks, T):
        block = blocks - 1 - start - tl.arange(0, T)
        at = sums + block[:, None] * N + n[None, :]
        there = (block >= 0)[:, None] & (n < N)[None, :]
        added = tl.load(at, mask=there, other=0.0)
        tl.store(at, tl.cumsum(added, 0) - added + found[None, :], mask=there)
        found += tl.sum(added, 0)


@triton.jit(do_not_specialize=_PLAIN)
def _d_decay(
    flow, m_b, m_h, m_t, m_n,
    log_decay, a_b, a_h, a_t, a_n,
    sums,
    d_decay, d_b, d_h, d_t, d_n,
    length, chunks, heads,
    N: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The flow from a token to the end, of which ``sums`` are what is behind a chunk's last block."""
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head, sample = _stream(heads)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    own = _tile(flow + sample * m_b + head * m_h, t, inside, m_t, n, n < N, m_n).to(tl.float64)
    at = (stream * chunks + chunk + 1) * (Q // P) - 1
    behind = tl.load(sums + at * N + n, mask=n < N, other=0.0)
    found = own - tl.cumsum(own, 0) + (tl.sum(own, 0) + behind)[None, :]
    log = _tile(log_decay + sample * a_b + head * a_h, t, inside, a_t, n, n < N, a_n)
    found = tl.where(log < _LOWEST, 0.0, found).to(tl.float32)
    _put(d_decay + sample * d_b + head * d_h, t, inside, d_t, n, n < N, d_n, found)


# ------------------------------------------------------------------ their launches


def scan(
    values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """``channel_scan``; arguments as there, float32 or shorter, of one token, sample, head, state and column at least.

    Args:
        dtype: of the outputs; that of the values where absent. The state is float32.
    """
    whole = all_samples((values, outputs, inputs, log_decay))
    mixed, last = call(_Scan, *whole, dtype or values.dtype)
    return mixed, last.mT


def back(
    d_mixed: Tensor | None, d_last: Tensor | None, *given: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of the four tensors of ``scan`` from those of its results, of all samples; None: no influence."""
    whole = all_samples(given)
    d_mixed = torch.zeros_like(whole[0]) if d_mixed is None else d_mixed
    return _gradients(whole, d_mixed, None if d_last is None else d_last.mT, wanted)


class _Scan(Function):
    """y and the last state ``(B, H, N, W)``."""

    @staticmethod
    def forward(
        values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        plan = _Plan(values, outputs, inputs, log_decay)
        with on_device(values.device):
            last = values.new_empty(plan.batch, plan.heads, plan.order, plan.width, dtype=torch.float32)
            return plan.mixed(plan.states(last), dtype), last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        d_mixed = torch.zeros_like(tensors[0]) if d_mixed is None else d_mixed
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted
            wanted = [t for t in tensors if t.requires_grad]
            mixed, last = by_tables(*tensors)
            wants = (d_mixed.to(mixed.dtype), torch.zeros_like(last) if d_last is None else d_last.mT)
            found = torch.autograd.grad((mixed, last), wanted, wants, create_graph=True, materialize_grads=True)
            grads = iter(found)
            return (*(next(grads) if t.requires_grad else None for t in tensors), None)
        with full_precision(d_mixed.device), on_device(d_mixed.device):
            return (*_gradients(tensors, d_mixed, d_last, ctx.needs_input_grad), None)


class _Plan:
    """The shapes and the arguments that all kernels share."""

    def __init__(self, values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor) -> None:
        self.batch, self.heads, self.length, self.width = values.shape
        self.order, self.streams, self.like = outputs.shape[3], self.batch * self.heads, values
        self.chunk = min(CHUNK, max(BLOCK, power_of_2(self.length)))
        self.chunks = cdiv(self.length, self.chunk)
        self.blocks = self.chunks * (self.chunk // BLOCK)
        self.values, self.outputs, self.inputs, self.log_decay = (
            _strided(t) for t in (values, outputs, inputs, log_decay)
        )
        self.sizes = (self.length, self.chunks, self.heads)
        whole = torch.float32 in (values.dtype, outputs.dtype, inputs.dtype)
        self.shape: dict[str, Any] = {
            "N": self.order,
            "W": self.width,
            "Q": self.chunk,
            "P": BLOCK,
            "PRECISION": "tf32x3" if whole else "tf32",
        }

    def tuned(self, kernel: str, *without: str) -> tuple[dict[str, Any], int, int]:
        """How a kernel is launched; and how many blocks of the states, and of the width, that makes."""
        options = {name: value for name, value in (self.shape | TUNED[kernel]).items() if name not in without}
        tall = min(options["BN"], max(16, power_of_2(self.order)))
        wide = min(options.get("BW", 16), max(16, power_of_2(self.width)))
        options |= {"BN": tall, "BW": wide} if "BW" in options else {"BN": tall}
        return options, cdiv(self.order, tall), cdiv(self.width, wide)

    def states(self, last: Tensor | None = None, d_mixed: Tensor | None = None, d_last: Tensor | None = None) -> Tensor:
        """The states at the borders of the chunks ``(1 or 2, B, H, Z + 1, N, W)``, the second of the way back.

        Written to ``last``, too, is the last one, where only the way forth is made.
        """
        ways = 1 if d_mixed is None else 2
        shape = (ways, self.batch, self.heads, self.chunks + 1, self.order, self.width)
        states = self.like.new_empty(shape, dtype=torch.float32)
        total = states.new_empty(self.streams, self.chunks, self.order)
        wanted = self.values if d_mixed is None else _strided(d_mixed)  # the former is a stand-in
        options, tall, wide = self.tuned("states")
        _states[(self.chunks, self.streams, ways * tall * wide)](
            *self.inputs, *self.values, *self.outputs, *wanted, *self.log_decay, states, total, *self.sizes, **options
        )
        size = self.order * self.width
        # As many entries as threads: where two threads held one entry, one might read what the other wrote.
        options = TUNED["carry"]
        _carry[(cdiv(size, TUNED["carry"]["BLOCK"]), self.streams, ways)](
            states, total, d_last, last, self.chunks,
            N=self.order, W=self.width, WANTED=d_last is not None, LAST=last is not None, **options,
        )  # fmt: skip
        return states

    def mixed(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """The outputs ``(B, H, L, W)``, laid out as tokens."""
        out = self.tokens(self.width, dtype)
        options, _, wide = self.tuned("outputs")
        _outputs[(self.blocks, self.streams, wide)](
            *self.inputs, *self.values, *self.outputs, *self.log_decay, states, *_strided(out), *self.sizes, **options
        )
        return out

    def tokens(self, width: int, dtype: torch.dtype) -> Tensor:
        """Room for ``(B, H, L, width)``."""
        return self.like.new_empty(self.batch, self.length, self.heads, width, dtype=dtype).transpose(1, 2)


def _gradients(
    tensors: tuple[Any, ...], d_mixed: Tensor, d_last: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Of the four tensors of ``_Scan``."""
    values, outputs, inputs, log_decay = tensors
    plan = _Plan(values, outputs, inputs, log_decay)
    if d_last is not None:
        d_last = d_last.contiguous()
    ahead, back = plan.states(d_mixed=d_mixed, d_last=d_last)
    wanted = _strided(d_mixed)

    d_values = plan.tokens(plan.width, values.dtype)
    options, _, wide = plan.tuned("d_values")
    _d_values[(plan.blocks, plan.streams, wide)](
        *plan.inputs, *plan.outputs, *wanted, *plan.log_decay, back, *_strided(d_values), *plan.sizes, **options
    )
    d_inputs, d_outputs = (plan.tokens(plan.order, t.dtype) for t in (inputs, outputs))
    flow = plan.tokens(plan.order, torch.float32)
    sums = ahead.new_empty(plan.batch, plan.heads, plan.blocks, plan.order, dtype=torch.float64)
    options, tall, _ = plan.tuned("d_factors")
    _d_factors[(plan.blocks, plan.streams, tall)](
        *plan.inputs, *plan.values, *plan.outputs, *wanted, *plan.log_decay, ahead, back, d_inputs, d_outputs,
        *_strided(flow), sums, *plan.sizes, **options,
    )  # fmt: skip
    if not needed[3]:
        return d_values, d_outputs, d_inputs, None
    options, tall, _ = plan.tuned("behind", "Q", "P", "PRECISION")
    _behind[(plan.streams, tall)](
        sums, ahead[:, :, -1], d_last, ahead.stride(1), plan.blocks, WANTED=d_last is not None, **options
    )
    d_decay = plan.tokens(plan.order, log_decay.dtype)
    options, tall, _ = plan.tuned("d_decay", "W", "PRECISION")
    _d_decay[(plan.chunks, plan.streams, tall)](
        *_strided(flow), *plan.log_decay, sums, *_strided(d_decay), *plan.sizes, **options
    )
    return d_values, d_outputs, d_inputs, d_decay


def _strided(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor, *tensor.stride())


# What was judged to be good; no result depends on it. Rows and warps: see matmix.ops.gpu.
CHUNK = 64  # Q, at most
BLOCK = 16  # P
TUNED: dict[str, dict[str, int]] = {
    "states": {"BN": 32, "BW": 64, "num_warps": 4, "num_stages": 1},
    "carry": {"BLOCK": 128, "AHEAD": 8, "num_warps": 4, "num_stages": 1},
    "outputs": {"BN": 32, "BW": 64, "num_warps": 8, "num_stages": 1},
    "d_values": {"BN": 32, "BW": 64, "num_warps": 8, "num_stages": 1},
    "d_factors": {"BN": 32, "BW": 32, "num_warps": 4, "num_stages": 1},
    "behind": {"BN": 32, "BW": 32, "T": 32, "num_warps": 4, "num_stages": 1},
    "d_decay": {"BN": 32, "num_warps": 4, "num_stages": 1},
}
