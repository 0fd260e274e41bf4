# mypy: allow-untyped-defs
"""``unit_lower_solve`` on a GPU: Triton kernels for the solve, and for its gradients.

    u_i + sum_{j<i} (left_i . right_j) u_j = v_i

Chunks of Q tokens in WY form (arXiv 2406.06484, section 3.2). With X the inverse of a chunk's own unit triangle, and S
the state of what stands before it (N x W), two launches:

    own = X v,  share = X left          all chunks at once
    u = own - share S,  S += right^T u  one chunk after the other; columns of values go apart, S stays in registers

The gradient of the values is a solve with the transposed matrix, whose factors change places and which starts at the
other end: the same launches. Its walk meets D, the state of ``left`` and ``dv`` behind a chunk; S is made again from
u, at the same time. A third launch, all chunks at once, gives

    dleft = -(P right + dv S^T),  dright = -(P^T left + u D^T),  P = strictly_lower(dv u^T)

Only the factors and u are kept. No sum depends on which program is first.

X is put together from blocks of 1, 2, 4, ... rows: the corner that joins two inverted blocks is ``-X_2 T X_1``. That is
forward substitution by blocks, as stable as by rows; no power of the triangle is formed, since those of keys alike grow
as binomials and cancel. Products take three passes over tf32, which is float32 to a digit or so.

Legend: B batch, H heads, L tokens in Z chunks of Q, N width of the factors, W width of the values.
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
from matmix.ops.scan_triton import scan
from matmix.ops.sizes import all_samples

_PLAIN = ["length", "chunks", "heads"]  # no value of these gets a kernel of its own


# ------------------------------------------------------------------ pieces


@triton.jit
def _places(chunk, length, Q: tl.constexpr, FLIP: tl.constexpr):
    """The tokens of a chunk, from its last one where FLIP; and which of them there are."""
    order = tl.arange(0, Q)
    if FLIP:
        order = Q - 1 - order
    t = chunk * Q + order
    return t, t < length


@triton.jit
def _tile(pointer, t, inside, t_stride, k, kept, k_stride):
    """``(Q, K)`` numbers of tokens t at places k."""
    at = pointer + t[:, None] * t_stride + k[None, :] * k_stride
    return tl.load(at, mask=inside[:, None] & kept[None, :], other=0.0).to(tl.float32)


@triton.jit
def _dot(x, y):
    return tl.dot(x, y, input_precision="tf32x3")


@triton.jit
def _inverse(triangle, Q: tl.constexpr):
    """``(I + strictly_lower(triangle))^-1``."""
    row = tl.arange(0, Q)[:, None]
    column = tl.arange(0, Q)[None, :]
    apart = row ^ column  # size <= apart < 2 size: in blocks of that size that stand side by side
    triangle = tl.where(row > column, triangle, 0.0)
    inverse = tl.where(row == column, 1.0, 0.0) - tl.where(apart == 1, triangle, 0.0)
    size = 2
    while size < Q:
        corner = tl.where((apart >= size) & (apart < 2 * size), triangle, 0.0)
        inverse -= _dot(_dot(inverse, corner), inverse)
        size *= 2
    return inverse


@triton.jit
def _walk(
    write, f_t, f_n,
    own, solved, u_t, u_w,  # alike; not one: a warp may read again what another has written
    share, states,
    w, length, chunks,
    N: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr, SOLVE: tl.constexpr, KEEP: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """From chunk to chunk: u of own, which is u already if not SOLVE; the states that enter the chunks, where KEEP."""
    n = tl.arange(0, BN)
    state = tl.zeros((BN, BW), tl.float32)
    for index in range(chunks):
        chunk = chunks - 1 - index if FLIP else index
        t, inside = _places(chunk, length, Q, False)
        if KEEP:
            at = states + tl.cast(chunk, tl.int64) * (N * W) + n[:, None] * W + w[None, :]
            tl.store(at, state, mask=(n < N)[:, None] & (w < W)[None, :])
        new = _tile(own, t, inside, u_t, w, w < W, u_w)
        if SOLVE:
            new -= _dot(_tile(share, t, inside, N, n, n < N, 1), state)
            at = solved + t[:, None] * u_t + w[None, :] * u_w
            tl.store(at, new, mask=inside[:, None] & (w < W)[None, :])
        state += _dot(tl.trans(_tile(write, t, inside, f_t, n, n < N, f_n)), new)


# ------------------------------------------------------------------ kernels


@triton.jit(do_not_specialize=_PLAIN)
def _chunks(
    left, l_b, l_h, l_t, l_n,
    right, r_b, r_h, r_t, r_n,
    values, v_b, v_h, v_t, v_w,
    own, u_b, u_h, u_t, u_w,
    share,  # (B, H, L, N)
    length, heads,
    N: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """What the tokens of a chunk are but for those before it; and how they read the state that enters it."""
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    t, inside = _places(tl.program_id(0), length, Q, FLIP)
    left += sample * l_b + head * l_h
    right += sample * r_b + head * r_h
    values += sample * v_b + head * v_h
    own += sample * u_b + head * u_h
    share += tl.program_id(1).to(tl.int64) * length * N
    triangle = tl.zeros((Q, Q), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        read = _tile(left, t, inside, l_t, n, n < N, l_n)
        triangle += _dot(read, tl.trans(_tile(right, t, inside, r_t, n, n < N, r_n)))
    inverse = _inverse(triangle, Q)
    for start in range(0, W, BW):
        w = start + tl.arange(0, BW)
        out = _dot(inverse, _tile(values, t, inside, v_t, w, w < W, v_w))
        tl.store(own + t[:, None] * u_t + w[None, :] * u_w, out, mask=inside[:, None] & (w < W)[None, :])
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        out = _dot(inverse, _tile(left, t, inside, l_t, n, n < N, l_n))
        tl.store(share + t[:, None] * N + n[None, :], out, mask=inside[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=_PLAIN)
def _solve(
    right, r_b, r_h, r_t, r_n,
    own, solved, u_b, u_h, u_t, u_w,
    share,
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    w = tl.program_id(0) * BW + tl.arange(0, BW)
    right += sample * r_b + head * r_h
    own += sample * u_b + head * u_h
    solved += sample * u_b + head * u_h
    share += tl.program_id(1).to(tl.int64) * length * N
    _walk(
        right, r_t, r_n, own, solved, u_t, u_w, share, share, w, length, chunks,
        N, W, FLIP, True, False, Q, BN, BW,
    )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def _solve_back(
    left, l_b, l_h, l_t, l_n,
    right, r_b, r_h, r_t, r_n,
    solved, u_b, u_h, u_t, u_w,
    own, d_values, g_b, g_h, g_t, g_w,
    share,
    states,  # (2, B, H, Z, N, W): S and D
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr, BACK: tl.constexpr,  # one is not the other
    Q: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """The transposed solve, which keeps its states; and the states of the solve itself."""
    stream, way = tl.program_id(1).to(tl.int64), tl.program_id(2)
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    w = tl.program_id(0) * BW + tl.arange(0, BW)
    states += (way * tl.num_programs(1) + stream) * chunks * (N * W)
    share += stream * length * N
    if way == 0:
        right += sample * r_b + head * r_h
        solved += sample * u_b + head * u_h
        _walk(
            right, r_t, r_n, solved, solved, u_t, u_w, share, states, w, length, chunks,
            N, W, FLIP, False, True, Q, BN, BW,
        )  # fmt: skip
    else:
        left += sample * l_b + head * l_h
        own += sample * g_b + head * g_h
        d_values += sample * g_b + head * g_h
        _walk(
            left, l_t, l_n, own, d_values, g_t, g_w, share, states, w, length, chunks,
            N, W, BACK, True, True, Q, BN, BW,
        )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def _d_factors(
    left, l_b, l_h, l_t, l_n,
    right, r_b, r_h, r_t, r_n,
    solved, u_b, u_h, u_t, u_w,
    d_values, g_b, g_h, g_t, g_w,
    states,
    d_left, d_right, m_b, m_h, m_t, m_n,  # alike
    length, chunks, heads,
    N: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head, sample = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    t, inside = _places(chunk, length, Q, FLIP)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    solved += sample * u_b + head * u_h
    d_values += sample * g_b + head * g_h
    before = states + (stream * chunks + chunk) * (N * W)
    behind = before + tl.num_programs(1).to(tl.int64) * chunks * (N * W)
    pairs = tl.zeros((Q, Q), tl.float32)  # dv_i . u_j
    d_read = tl.zeros((Q, BN), tl.float32)
    d_write = tl.zeros((Q, BN), tl.float32)
    for start in range(0, W, BW):
        w = start + tl.arange(0, BW)
        u = _tile(solved, t, inside, u_t, w, w < W, u_w)
        dv = _tile(d_values, t, inside, g_t, w, w < W, g_w)
        pairs += _dot(dv, tl.trans(u))
        d_read += _dot(dv, tl.trans(_tile(before, n, n < N, W, w, w < W, 1)))
        d_write += _dot(u, tl.trans(_tile(behind, n, n < N, W, w, w < W, 1)))
    pairs = tl.where(tl.arange(0, Q)[:, None] > tl.arange(0, Q)[None, :], pairs, 0.0)
    write = _tile(right + sample * r_b + head * r_h, t, inside, r_t, n, n < N, r_n)
    d_read += _dot(pairs, write)
    read = _tile(left + sample * l_b + head * l_h, t, inside, l_t, n, n < N, l_n)
    d_write += _dot(tl.trans(pairs), read)
    at = sample * m_b + head * m_h + t[:, None] * m_t + n[None, :] * m_n
    kept = inside[:, None] & (n < N)[None, :]
    tl.store(d_left + at, -d_read, mask=kept)
    tl.store(d_right + at, -d_write, mask=kept)


# ------------------------------------------------------------------ their launches


def solve(left: Tensor, right: Tensor, values: Tensor, *, flip: bool = False) -> Tensor:
    """``unit_lower_solve``: float32; arguments as there, float32 or shorter, N at most ``MOST`` and no size 0.

    Args:
        flip: from the last token to the first: j > i in the sum.
    """
    solved: Tensor = call(_Solve, *all_samples((left, right, values)), flip)
    return solved


class _Solve(Function):
    @staticmethod
    def forward(left: Tensor, right: Tensor, values: Tensor, flip: bool) -> Tensor:
        with on_device(values.device):
            plan = _Plan(left, right, values)
            own, share = plan.chunks(left, right, values, flip)
            if plan.count == 1:
                return own
            solved = torch.empty_like(own)
            options, wide = plan.tuned("solve")
            _solve[(wide, plan.streams)](
                *_of(right), own, *_of(solved), share, plan.length, plan.count, plan.heads, FLIP=flip, **options
            )
        return solved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        left, right, values, ctx.flip = inputs
        ctx.dtype = values.dtype
        ctx.save_for_backward(left, right, output)

    @staticmethod
    def backward(ctx: Any, d_solved: Tensor) -> tuple[Tensor | None, ...]:
        left, right, solved = ctx.saved_tensors
        with full_precision(d_solved.device), on_device(d_solved.device):
            if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
                return None, None, solve(right, left, d_solved, flip=not ctx.flip).to(ctx.dtype), None
            if torch.is_grad_enabled():  # a derivative of the derivative is wanted
                d_left, d_right, d_values = _differentiable(left, right, solved, d_solved, ctx.flip)
            else:
                d_left, d_right, d_values = _gradients(left, right, solved, d_solved, ctx.flip)
        return d_left, d_right, d_values.to(ctx.dtype), None


def _differentiable(
    left: Tensor, right: Tensor, solved: Tensor, d_solved: Tensor, flip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as products that have gradients: those of the factors are semiseparable, less a diagonal."""
    d_values = solve(right, left, d_solved, flip=not flip)
    decay, own = solved.new_zeros(solved.shape[:3]), (d_values * solved).sum(-1, keepdim=True)
    d_left = own * right - scan(right.float(), d_values, solved, decay, None, flip=flip)[0]
    d_right = own * left - scan(left.float(), solved, d_values, decay, None, flip=not flip)[0]
    return d_left.to(left.dtype), d_right.to(right.dtype), d_values


def _gradients(
    left: Tensor, right: Tensor, solved: Tensor, d_solved: Tensor, flip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _Plan(left, right, d_solved)
    own, share = plan.chunks(right, left, d_solved, not flip)
    d_values = torch.empty_like(own)
    tensors = (*_of(left), *_of(right), *_of(solved))
    sizes = (plan.length, plan.count, plan.heads)
    states = share.new_empty(2, plan.streams, plan.count, plan.states, plan.width)
    options, wide = plan.tuned("solve_back")
    _solve_back[(wide, plan.streams, 2)](
        *tensors, own, *_of(d_values), share, states, *sizes, FLIP=flip, BACK=not flip, **options
    )
    kept = left.dtype if left.dtype == right.dtype else torch.float32
    d_factors = share.new_empty(2, plan.batch, plan.length, plan.heads, plan.states, dtype=kept).transpose(2, 3)
    options, _ = plan.tuned("d_factors")
    _d_factors[(plan.count, plan.streams, cdiv(plan.states, options["BN"]))](
        *tensors, *_of(d_values), states, *d_factors.unbind(0), *d_factors.stride()[1:], *sizes, FLIP=flip, **options
    )
    d_left, d_right = d_factors
    return d_left.to(left.dtype), d_right.to(right.dtype), d_values


class _Plan:
    """The shapes that all kernels share."""

    def __init__(self, left: Tensor, right: Tensor, values: Tensor) -> None:
        self.batch, self.heads, self.length, self.width = values.shape
        self.states, self.streams = left.shape[3], self.batch * self.heads
        self.whole = max(16, power_of_2(self.states))  # N, in one block
        self.chunk = min(max(16, min(CHUNK, ENTRIES // self.whole)), max(16, power_of_2(self.length)))
        self.count = cdiv(self.length, self.chunk)

    def tuned(self, kernel: str) -> tuple[dict[str, Any], int]:
        """How a kernel is launched; and how many blocks of the width that makes."""
        options = {"N": self.states, "W": self.width, "Q": self.chunk, "BN": self.whole, **TUNED[kernel]}
        options["BN"] = min(options["BN"], self.whole)
        options["BW"] = min(options["BW"], max(16, power_of_2(self.width)))
        return options, cdiv(self.width, options["BW"])

    def chunks(self, left: Tensor, right: Tensor, values: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
        """Own ``(B, H, L, W)``, laid out as tokens, and share ``(B H, L, N)``."""
        size = (self.batch, self.length, self.heads, self.width)
        own = values.new_empty(size, dtype=torch.float32).transpose(1, 2)
        share = own.new_empty(self.streams, self.length, self.states)
        options, _ = self.tuned("chunks")
        _chunks[(self.count, self.streams)](
            *_of(left), *_of(right), *_of(values), *_of(own), share, self.length, self.heads, FLIP=flip, **options
        )
        return own, share


def _of(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor, *tensor.stride())


# What was judged to be good, not measured; no result depends on it. Rows and warps: see matmix.ops.gpu.
CHUNK = 32  # Q, at most
ENTRIES = 4096  # Q N, at most: more do not stay in registers
TUNED: dict[str, dict[str, int]] = {
    "chunks": {"BN": 32, "BW": 32, "num_warps": 4, "num_stages": 1},
    "solve": {"BW": 16, "num_warps": 2, "num_stages": 2},
    "solve_back": {"BW": 16, "num_warps": 2, "num_stages": 2},
    "d_factors": {"BN": 64, "BW": 32, "num_warps": 4, "num_stages": 1},
}
