# mypy: allow-untyped-defs
"""``ssd_scan`` on a GPU: Triton kernels for the chunked product, and for its gradients.

    y_i = C_i . S_i,   S_i = exp(a_i) S_{i-1} + s_i B_i v_i^T        (states S are N x W)

A chunk of Q tokens gives itself ``(C B^T o decay s) v`` and takes ``exp(..) C S`` from the state S that enters it:
three launches, for what chunks add to the state, for the states that enter them, and for the outputs (arXiv
2405.21060, section 6), where a program takes a block of P tokens and goes through the blocks before it in the chunk.
The gradients are products of the same kind. With D, the state of the way back (C and dy in place of B and v), a chunk
gives

    dv = s u,   u = (C B^T o decay)^T dy + exp(..) B D
    dC = (dy v^T o decay s) B + exp(..) dy S^T,   dB = s ((dy v^T o decay)^T C + exp(..) v D^T)

and what is wanted of the log decays is the sum, from a token to the end, of ``C . dC - v . dv``. Five launches; S and D
are made again and share theirs. Only the arguments are kept.

Exponents are those of ``matmix.ops.scan``: sums over a run of tokens within one chunk, added up and subtracted in
float64. Products of float32 take three passes over tf32, which is float32 to a digit or so.

Legend: B batch, H heads in G groups of R, L tokens in Z chunks of Q and blocks of P, N state, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matmix.ops.function import Function, call
from matmix.ops.gpu import cdiv, on_device, power_of_2
from matmix.ops.precision import full_precision
from matmix.ops.scan import by_blocks
from matmix.ops.sizes import all_samples

LOWEST = -128.0  # stands for a log decay of -inf: exp of it is 0 in float32, and sums of it can be subtracted
_LOWEST = tl.constexpr(LOWEST)
_PLAIN = ["length", "chunks", "heads", "repeat"]  # no value of these gets a kernel of its own


# ------------------------------------------------------------------ pieces


@triton.jit
def _places(chunk, length, Q: tl.constexpr, FLIP: tl.constexpr):
    """The tokens of a chunk, from the last one where FLIP; and which of them there are."""
    order = chunk * Q + tl.arange(0, Q)
    inside = order < length
    if FLIP:
        return length - 1 - order, inside
    else:
        return order, inside


@triton.jit
def _logs(log_decay, a_t, t, inside):
    steps = tl.load(log_decay + t * a_t, mask=inside, other=0.0).to(tl.float32)
    return tl.maximum(steps, _LOWEST).to(tl.float64)


@triton.jit
def _block(log_decay, a_t, chunk, place, length, Q: tl.constexpr, P: tl.constexpr, FLIP: tl.constexpr):
    """The tokens of a block, and which of them there are; the log decay from the start of the chunk to each, itself
    included, and that of the whole chunk."""
    t, inside = _places(chunk, length, Q, FLIP)
    steps = _logs(log_decay, a_t, t, inside)
    before = tl.sum(tl.where(tl.arange(0, Q) < place * P, steps, 0.0), 0)
    t, inside = _places(chunk * (Q // P) + place, length, P, FLIP)
    return t, inside, before + tl.cumsum(_logs(log_decay, a_t, t, inside), 0), tl.sum(steps, 0)


@triton.jit
def _decays(exponent, row, column, P: tl.constexpr):
    """``exp`` of an exponent ``(P, P)`` of blocks row and column, where the row's token is not before the column's."""
    later = row * P + tl.arange(0, P)[:, None] >= column * P + tl.arange(0, P)[None, :]
    return tl.exp(tl.where(later, exponent.to(tl.float32), float("-inf")))


@triton.jit
def _steps(step, s_t, t, inside, STEP: tl.constexpr):
    if STEP:
        return tl.load(step + t * s_t, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.where(inside, 1.0, 0.0)


@triton.jit
def _tile(pointer, t, inside, t_stride, k, kept, k_stride):
    """``(Q, K)`` numbers of tokens t at places k."""
    return tl.load(
        pointer + t[:, None] * t_stride + k[None, :] * k_stride, mask=inside[:, None] & kept[None, :], other=0.0
    )


@triton.jit
def _state(pointer, n, w, states, width):
    """``(N, W)`` numbers of a state."""
    return tl.load(
        pointer + n[:, None] * width + w[None, :], mask=(n < states)[:, None] & (w < width)[None, :], other=0.0
    )


@triton.jit
def _dot(x, y, KIND: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(x.to(KIND), y.to(KIND), input_precision=PRECISION)


# ------------------------------------------------------------------ kernels


@triton.jit(do_not_specialize=_PLAIN)
def _states(
    inputs, b_b, b_g, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_g, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t,
    step, s_b, s_h, s_t,
    states, total,  # (1 or 2, B, H, Z, N, W), (B, H, Z)
    length, chunks, heads, repeat,
    N: tl.constexpr, W: tl.constexpr, STEP: tl.constexpr, FLIP: tl.constexpr,
    Q: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state, for the chunks behind; and on the way back, for those before."""
    chunk, head, sample = tl.program_id(0), tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    blocks = tl.cdiv(N, BN) * tl.cdiv(W, BW)
    way, block = tl.program_id(2) // blocks, tl.program_id(2) % blocks
    n = block // tl.cdiv(W, BW) * BN + tl.arange(0, BN)
    w = block % tl.cdiv(W, BW) * BW + tl.arange(0, BW)
    t, inside, upto, end = _block(log_decay + sample * a_b + head * a_h, a_t, chunk, 0, length, Q, Q, FLIP)
    group = head // repeat
    if way == 0:
        weight = tl.exp((end - upto).to(tl.float32)) * _steps(step + sample * s_b + head * s_h, s_t, t, inside, STEP)
        left = _tile(inputs + sample * b_b + group * b_g, t, inside, b_t, n, n < N, b_n).to(tl.float32)
        right = _tile(values + sample * v_b + head * v_h, t, inside, v_t, w, w < W, v_w).to(tl.float32)
    else:
        weight = tl.exp(upto.to(tl.float32))
        left = _tile(outputs + sample * c_b + group * c_g, t, inside, c_t, n, n < N, c_n).to(tl.float32)
        right = _tile(d_mixed + sample * g_b + head * g_h, t, inside, g_t, w, w < W, g_w).to(tl.float32)
    added = _dot(tl.trans(left), right * weight[:, None], KIND, PRECISION)
    place = tl.program_id(1).to(tl.int64) * chunks + chunk
    at = (way * (tl.num_programs(1).to(tl.int64) * chunks) + place) * (N * W)
    where = n[:, None] * W + w[None, :]
    tl.store(states + at + where, added, mask=(n < N)[:, None] & (w < W)[None, :])
    if tl.program_id(2) == 0:
        tl.store(total + place, tl.exp(end.to(tl.float32)))


@triton.jit(do_not_specialize=["chunks"])
def _carry(
    states, total, initial, wanted, last,
    chunks,
    SIZE: tl.constexpr, INITIAL: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """In place: the states that enter the chunks; and the one that leaves the last. Way 1 goes from the end."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = entry < SIZE
    stream, way = tl.program_id(1).to(tl.int64), tl.program_id(2)
    own = (way * tl.num_programs(1).to(tl.int64) + stream) * SIZE
    state = tl.zeros((BLOCK,), tl.float32)
    if INITIAL:  # known to the compiler, which the way is not
        if way == 0:
            state = tl.load(initial + stream * SIZE + entry, mask=kept, other=0.0)
    if WANTED:
        if way == 1:
            state = tl.load(wanted + stream * SIZE + entry, mask=kept, other=0.0)
    for start in range(0, chunks, AHEAD):
        # Loaded together: one after the other would wait for memory at every chunk.
        added = ()
        decays = ()
        for index in tl.static_range(AHEAD):
            there = start + index < chunks
            chunk = tl.where(way == 0, start + index, chunks - 1 - start - index)
            new = tl.load(states + own * chunks + chunk * SIZE + entry, mask=kept & there, other=0.0)
            added = added + (new,)  # type: ignore[assignment]
            new = tl.load(total + stream * chunks + chunk, mask=there, other=1.0)
            decays = decays + (new,)  # type: ignore[assignment]
        for index in tl.static_range(AHEAD):
            there = start + index < chunks
            chunk = tl.where(way == 0, start + index, chunks - 1 - start - index)
            tl.store(states + own * chunks + chunk * SIZE + entry, state, mask=kept & there)
            state = decays[index] * state + added[index]
    tl.store(last + own + entry, state, mask=kept)


@triton.jit(do_not_specialize=_PLAIN)
def _outputs(
    inputs, b_b, b_g, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_g, c_t, c_n,
    log_decay, a_b, a_h, a_t,
    step, s_b, s_h, s_t,
    states,
    mixed, m_b, m_h, m_t, m_w,
    length, chunks, heads, repeat,
    N: tl.constexpr, W: tl.constexpr, STEP: tl.constexpr, FLIP: tl.constexpr,
    Q: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, place = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P)
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    w = tl.program_id(2) * BW + tl.arange(0, BW)
    inputs += sample * b_b + head // repeat * b_g
    outputs += sample * c_b + head // repeat * c_g
    values += sample * v_b + head * v_h
    log_decay += sample * a_b + head * a_h
    step += sample * s_b + head * s_h
    states += (tl.program_id(1).to(tl.int64) * chunks + chunk) * (N * W)
    t, inside, upto, _ = _block(log_decay, a_t, chunk, place, length, Q, P, FLIP)
    out = tl.zeros((P, BW), tl.float32)
    for start in tl.static_range(0, N, BN):
        n = start + tl.arange(0, BN)
        read = _tile(outputs, t, inside, c_t, n, n < N, c_n)
        out += _dot(read, _state(states, n, w, N, W), KIND, PRECISION)
    out *= tl.exp(upto.to(tl.float32))[:, None]
    for other in range(place + 1):
        j, there, past, _ = _block(log_decay, a_t, chunk, other, length, Q, P, FLIP)
        scores = tl.zeros((P, P), tl.float32)
        for start in tl.static_range(0, N, BN):
            n = start + tl.arange(0, BN)
            read = _tile(outputs, t, inside, c_t, n, n < N, c_n)
            scores += _dot(read, tl.trans(_tile(inputs, j, there, b_t, n, n < N, b_n)), KIND, PRECISION)
        scores *= _decays(upto[:, None] - past[None, :], place, other, P) * _steps(step, s_t, j, there, STEP)[None, :]
        out += _dot(scores, _tile(values, j, there, v_t, w, w < W, v_w), KIND, PRECISION)
    at = mixed + sample * m_b + head * m_h + t[:, None] * m_t + w[None, :] * m_w
    tl.store(at, out, mask=inside[:, None] & (w < W)[None, :])


@triton.jit(do_not_specialize=_PLAIN)
def _d_values(
    inputs, b_b, b_g, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_g, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t,
    step, s_b, s_h, s_t,
    states,  # those of the way back
    d_values, m_b, m_h, m_t, m_w,
    d_step,  # u . v, by blocks of W: (blocks, B, H, L)
    length, chunks, heads, repeat,
    N: tl.constexpr, W: tl.constexpr, STEP: tl.constexpr, FLIP: tl.constexpr,
    Q: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, place = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P)
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    w = tl.program_id(2) * BW + tl.arange(0, BW)
    inputs += sample * b_b + head // repeat * b_g
    outputs += sample * c_b + head // repeat * c_g
    d_mixed += sample * g_b + head * g_h
    log_decay += sample * a_b + head * a_h
    states += (tl.program_id(1).to(tl.int64) * chunks + chunk) * (N * W)
    t, inside, upto, end = _block(log_decay, a_t, chunk, place, length, Q, P, FLIP)
    out = tl.zeros((P, BW), tl.float32)
    for start in tl.static_range(0, N, BN):
        n = start + tl.arange(0, BN)
        write = _tile(inputs, t, inside, b_t, n, n < N, b_n)
        out += _dot(write, _state(states, n, w, N, W), KIND, PRECISION)
    out *= tl.exp((end - upto).to(tl.float32))[:, None]
    for other in range(place, Q // P):
        i, there, next, _ = _block(log_decay, a_t, chunk, other, length, Q, P, FLIP)
        scores = tl.zeros((P, P), tl.float32)  # (i, j)
        for start in tl.static_range(0, N, BN):
            n = start + tl.arange(0, BN)
            write = _tile(inputs, t, inside, b_t, n, n < N, b_n)
            scores += _dot(_tile(outputs, i, there, c_t, n, n < N, c_n), tl.trans(write), KIND, PRECISION)
        scores *= _decays(next[:, None] - upto[None, :], other, place, P)
        out += _dot(tl.trans(scores), _tile(d_mixed, i, there, g_t, w, w < W, g_w), KIND, PRECISION)
    weight = _steps(step + sample * s_b + head * s_h, s_t, t, inside, STEP)
    at = d_values + sample * m_b + head * m_h + t[:, None] * m_t + w[None, :] * m_w
    tl.store(at, out * weight[:, None], mask=inside[:, None] & (w < W)[None, :])
    value = _tile(values + sample * v_b + head * v_h, t, inside, v_t, w, w < W, v_w).to(tl.float32)
    at = (tl.program_id(2) * tl.num_programs(1).to(tl.int64) + tl.program_id(1)) * length
    tl.store(d_step + at + t, tl.sum(out * value, 1), mask=inside)


@triton.jit(do_not_specialize=[*_PLAIN, "split"])
def _d_factors(
    inputs, b_b, b_g, b_t, b_n,
    values, v_b, v_h, v_t, v_w,
    outputs, c_b, c_g, c_t, c_n,
    d_mixed, g_b, g_h, g_t, g_w,
    log_decay, a_b, a_h, a_t,
    step, s_b, s_h, s_t,
    states,
    d_factor, m_p, m_b, m_g, m_t, m_n,  # (parts, B, G, L, N)
    rows,  # C . dC of every head, by blocks of N: (blocks, B, H, L)
    length, chunks, heads, repeat, split,
    WAY: tl.constexpr, N: tl.constexpr, W: tl.constexpr, STEP: tl.constexpr, FLIP: tl.constexpr,
    Q: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of C (way 0) or B (way 1) by some heads of a group, one after the other."""
    chunk, place = tl.program_id(0) // (Q // P), tl.program_id(0) % (Q // P)
    parts, groups = tl.cdiv(repeat, split), heads // repeat
    part, team = tl.program_id(1) % parts, tl.program_id(1) // parts
    group, sample = team % groups, (team // groups).to(tl.int64)
    block = tl.program_id(2)
    n = block * BN + tl.arange(0, BN)
    inputs += sample * b_b + group * b_g
    outputs += sample * c_b + group * c_g
    total = tl.zeros((P, BN), tl.float32)
    for index in range(split):
        member = part * split + index
        if member < repeat:
            head = group * repeat + member
            stream = sample * heads + head
            at = states + (stream * chunks + chunk) * (N * W)
            logs, steps = log_decay + sample * a_b + head * a_h, step + sample * s_b + head * s_h
            value, d_mix = values + sample * v_b + head * v_h, d_mixed + sample * g_b + head * g_h
            t, inside, upto, end = _block(logs, a_t, chunk, place, length, Q, P, FLIP)
            own = tl.zeros((P, BN), tl.float32)
            for start in tl.static_range(0, W, BW):
                w = start + tl.arange(0, BW)
                if WAY == 0:
                    first = _tile(d_mix, t, inside, g_t, w, w < W, g_w)
                else:
                    first = _tile(value, t, inside, v_t, w, w < W, v_w)
                own += _dot(first, tl.trans(_state(at, n, w, N, W)), KIND, PRECISION)
            if WAY == 0:
                own *= tl.exp(upto.to(tl.float32))[:, None]
            else:
                own *= tl.exp((end - upto).to(tl.float32))[:, None]
            for other in range(0 if WAY == 0 else place, place + 1 if WAY == 0 else Q // P):
                s, there, theirs, _ = _block(logs, a_t, chunk, other, length, Q, P, FLIP)
                pairs = tl.zeros((P, P), tl.float32)  # dy_i . v_j, or v_j . dy_i
                for start in tl.static_range(0, W, BW):
                    w = start + tl.arange(0, BW)
                    if WAY == 0:
                        first = _tile(d_mix, t, inside, g_t, w, w < W, g_w)
                        second = _tile(value, s, there, v_t, w, w < W, v_w)
                    else:
                        first = _tile(value, t, inside, v_t, w, w < W, v_w)
                        second = _tile(d_mix, s, there, g_t, w, w < W, g_w)
                    pairs += _dot(first, tl.trans(second), KIND, PRECISION)
                if WAY == 0:
                    pairs *= _decays(upto[:, None] - theirs[None, :], place, other, P)
                    pairs *= _steps(steps, s_t, s, there, STEP)[None, :]
                    own += _dot(pairs, _tile(inputs, s, there, b_t, n, n < N, b_n), KIND, PRECISION)
                else:
                    pairs *= tl.trans(_decays(theirs[:, None] - upto[None, :], other, place, P))
                    own += _dot(pairs, _tile(outputs, s, there, c_t, n, n < N, c_n), KIND, PRECISION)
            if WAY == 0:
                read = _tile(outputs, t, inside, c_t, n, n < N, c_n)
                line = (block * (tl.num_programs(1).to(tl.int64) // parts * repeat) + stream) * length
                tl.store(rows + line + t, tl.sum(read.to(tl.float32) * own, 1), mask=inside)
            else:
                own *= _steps(steps, s_t, t, inside, STEP)[:, None]
            total += own
    t, inside = _places(chunk * (Q // P) + place, length, P, FLIP)
    at = part * m_p + sample * m_b + group * m_g + t[:, None] * m_t + n[None, :] * m_n
    tl.store(d_factor + at, total, mask=inside[:, None] & (n < N)[None, :])


# ------------------------------------------------------------------ their launches


def scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    step: Tensor | None,
    initial: Tensor | None = None,
    *,
    flip: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``ssd_scan``; arguments as there, float32 or shorter, with at least one token, sample, head, state and column.

    Args:
        flip: from the last token to the first: what stands behind a token reaches it.
        dtype: of the outputs; that of the values where absent. The state is float32.
    """
    mixed, last = call(_Scan, *_whole(values, outputs, inputs, log_decay, step, initial), flip, dtype or values.dtype)
    return mixed, last.mT


def back(
    d_mixed: Tensor | None, d_last: Tensor | None, *given: Tensor | None, flip: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of the six tensors of ``scan`` from those of its results, of all samples; None: no influence."""
    whole = _whole(*given)
    d_mixed = torch.zeros_like(whole[0]) if d_mixed is None else d_mixed
    *others, d_initial = _gradients(whole, d_mixed, None if d_last is None else d_last.mT, flip)
    return (*others, None if d_initial is None else d_initial.mT)


def _whole(*given: Tensor | None) -> tuple[Any, ...]:
    """The six tensors with all samples, and the initial state as kernels read it."""
    *whole, start = all_samples(given)
    return (*whole, None if start is None else start.float().mT.contiguous())


class _Scan(Function):
    """y and the last state ``(B, H, N, W)``."""

    @staticmethod
    def forward(
        values: Tensor,
        outputs: Tensor,
        inputs: Tensor,
        log_decay: Tensor,
        step: Tensor | None,
        initial: Tensor | None,
        flip: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        plan = _Plan(values, outputs, inputs, log_decay, step, flip)
        with on_device(values.device):
            states, last = plan.states(initial)
            return plan.mixed(states, dtype), last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.flip, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        d_mixed = torch.zeros_like(tensors[0]) if d_mixed is None else d_mixed
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted
            wanted = [t for t in tensors if t is not None and t.requires_grad]
            values, outputs, inputs, log_decay, step, initial = tensors
            plain = _plain(values, outputs, inputs, log_decay, step, initial, ctx.flip)
            wants = (d_mixed.to(plain[0].dtype), torch.zeros_like(plain[1]) if d_last is None else d_last)
            found = torch.autograd.grad(plain, wanted, wants, create_graph=True, materialize_grads=True)
            grads = iter(found)
            return (*(None if t is None or not t.requires_grad else next(grads) for t in tensors), None, None)
        with full_precision(d_mixed.device), on_device(d_mixed.device):
            return (*_gradients(tensors, d_mixed, d_last, ctx.flip), None, None)


def _plain(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    step: Tensor | None,
    initial: Tensor | None,
    flip: bool,
) -> tuple[Tensor, Tensor]:
    """What ``_Scan`` computes, in operations that can be differentiated any number of times."""
    if flip:
        values, outputs, inputs, log_decay = (t.flip(2) for t in (values, outputs, inputs, log_decay))
        step = None if step is None else step.flip(2)
    start = None if initial is None else initial.mT
    mixed, last = by_blocks(values, outputs, inputs, log_decay, step, initial=start)
    return mixed.flip(2) if flip else mixed, last.mT


class _Plan:
    """The shapes and the arguments that all kernels share."""

    def __init__(
        self, values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor, step: Tensor | None, flip: bool
    ) -> None:
        self.batch, self.heads, self.length, self.width = values.shape
        self.groups, self.states_ = outputs.shape[1], outputs.shape[3]
        self.like, has_step = values, step is not None
        self.kind = (
            _KINDS.get(values.dtype, tl.float32) if values.dtype == outputs.dtype == inputs.dtype else tl.float32
        )
        self.chunk = min(CHUNK, max(16, power_of_2(self.length)))
        self.chunks = cdiv(self.length, self.chunk)
        self.blocks = self.chunks * (self.chunk // min(BLOCK, self.chunk))
        self.factors = [t for x in (inputs, values, outputs) for t in (x, *x.stride())]
        step = log_decay if step is None else step  # a stand-in that is not read
        self.decay = (log_decay, *log_decay.stride(), step, *step.stride())
        self.sizes = (self.length, self.chunks, self.heads, self.heads // self.groups)
        self.shape = {
            "N": self.states_,
            "W": self.width,
            "STEP": has_step,
            "FLIP": flip,
            "Q": self.chunk,
            "P": min(BLOCK, self.chunk),
            "KIND": self.kind,
            "PRECISION": "tf32x3" if self.kind == tl.float32 else "tf32",
        }

    def tuned(self, kernel: str) -> tuple[dict[str, Any], int, int]:
        """How a kernel is launched; and how many blocks of the states, and of the width, that makes."""
        options = {**self.shape, **TUNED[kernel]}
        for name, size in (("BN", self.states_), ("BW", self.width)):
            options[name] = min(options[name], max(16, power_of_2(size)))
        return options, cdiv(self.states_, options["BN"]), cdiv(self.width, options["BW"])

    def states(
        self, initial: Tensor | None, d_mixed: Tensor | None = None, d_last: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states that enter the chunks ``(1 or 2, B, H, Z, N, W)``, the second of the way back; and at the ends."""
        ways, size = (1 if d_mixed is None else 2), self.states_ * self.width
        streams = self.batch * self.heads
        entering = self.like.new_empty(
            ways, self.batch, self.heads, self.chunks, self.states_, self.width, dtype=torch.float32
        )
        last = entering.new_empty(ways, self.batch, self.heads, self.states_, self.width)
        total = entering.new_empty(streams, self.chunks)
        wanted = self.factors[5:10] if d_mixed is None else (d_mixed, *d_mixed.stride())
        options, tall, wide = self.tuned("states")
        _states[(self.chunks, streams, ways * tall * wide)](
            *self.factors, *wanted, *self.decay, entering, total, *self.sizes, **options
        )
        block = 256  # a place for every thread: in place, nobody may read again what another wrote
        _carry[(cdiv(size, block), streams, ways)](
            entering, total, initial, d_last, last, self.chunks,
            SIZE=size, INITIAL=initial is not None, WANTED=d_last is not None, BLOCK=block, **TUNED["carry"],
        )  # fmt: skip
        return entering, (last.squeeze(0) if ways == 1 else last)

    def mixed(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """The outputs ``(B, H, L, W)``, laid out as tokens."""
        out = self.like.new_empty(self.batch, self.length, self.heads, self.width, dtype=dtype).transpose(1, 2)
        options, _, wide = self.tuned("outputs")
        _outputs[(self.blocks, self.batch * self.heads, wide)](
            *self.factors, *self.decay, states, out, *out.stride(), *self.sizes, **options
        )
        return out


def _gradients(
    tensors: tuple[Any, ...], d_mixed: Tensor, d_last: Tensor | None, flip: bool
) -> tuple[Tensor | None, ...]:
    """Of the six tensors of ``_Scan``."""
    values, outputs, inputs, log_decay, step, initial = tensors
    plan = _Plan(values, outputs, inputs, log_decay, step, flip)
    batch, heads, length, groups = plan.batch, plan.heads, plan.length, plan.groups
    if d_last is not None:
        d_last = d_last.contiguous()
    states, (last, first) = plan.states(initial, d_mixed, d_last)
    wanted = (d_mixed, *d_mixed.stride())

    d_values = values.new_empty(batch, length, heads, plan.width).transpose(1, 2)
    options, _, wide = plan.tuned("d_values")
    columns = states.new_empty(wide, batch, heads, length)
    _d_values[(plan.blocks, batch * heads, wide)](
        *plan.factors, *wanted, *plan.decay, states[1], d_values, *d_values.stride(), columns, *plan.sizes, **options
    )
    repeat = heads // groups
    split = min(repeat, SPLIT)
    parts = cdiv(repeat, split)
    kept = outputs.dtype if parts == 1 else torch.float32
    d_factors = values.new_empty(2, parts, batch, length, groups, plan.states_, dtype=kept).transpose(3, 4)
    options, tall, _ = plan.tuned("d_factors")
    rows = states.new_empty(tall, batch, heads, length)
    for way in (0, 1):
        _d_factors[(plan.blocks, batch * groups * parts, tall)](
            *plan.factors, *wanted, *plan.decay, states[way], d_factors[way], *d_factors.stride()[1:], rows,
            *plan.sizes, split, WAY=way, **options,
        )  # fmt: skip
    d_outputs, d_inputs = d_factors.squeeze(1) if parts == 1 else d_factors.sum(1)

    written = columns.squeeze(0) if len(columns) == 1 else columns.sum(0)  # u . v
    read = rows.squeeze(0) if len(rows) == 1 else rows.sum(0)
    # In float64: what is left of these sums may be small against them.
    flow = read.double() - (written if step is None else written * step)
    d_decay = flow.cumsum(-1) if flip else flow.flip(-1).cumsum(-1).flip(-1)
    if d_last is not None:
        d_decay = d_decay + (last.double() * d_last).sum((-2, -1), keepdim=True).squeeze(-1)
    d_decay = d_decay.to(log_decay.dtype).masked_fill_(log_decay < LOWEST, 0)
    d_step = None if step is None else written.to(step.dtype)
    d_initial = None if initial is None else first
    return d_values, d_outputs.to(outputs.dtype), d_inputs.to(inputs.dtype), d_decay, d_step, d_initial


# What was good on an H100, among some others; no result depends on it. Rows and warps: see matmix.ops.gpu.
CHUNK = 64  # Q, at most
BLOCK = 32  # P, at most
SPLIT = 4  # heads of a group whose gradients one program adds up
TUNED: dict[str, dict[str, int]] = {
    "states": {"BN": 32, "BW": 64, "num_warps": 4, "num_stages": 1},
    "carry": {"AHEAD": 8, "num_warps": 4, "num_stages": 1},
    "outputs": {"BN": 64, "BW": 64, "num_warps": 4, "num_stages": 1},
    "d_values": {"BN": 64, "BW": 64, "num_warps": 4, "num_stages": 1},
    "d_factors": {"BN": 64, "BW": 64, "num_warps": 4, "num_stages": 1},
}
_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}  # in which products may run
