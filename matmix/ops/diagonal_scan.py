"""Products with semiseparable matrices whose decay is diagonal: one rate a channel and state (S6, S4D-Real).

    S_i[n] = exp(a_i[n]) S_{i-1}[n] + s_i B_i[n] v_i,   y_i = sum_n C_i[n] S_i[n]

No small table of scores serves all states here, so the recurrence itself runs. On a CPU it does so token by token, in
cache and in place (``diagonal_recurrence``); on a CUDA device in registers, by Triton (``diagonal_scan_triton``). What
a compiler traces, float64 on a GPU and other devices want few steps on large tensors: two levels, all chunks of Q
tokens side by side from zero, then over the chunks' last states, then all chunks again from the states that truly
enter them. That is O(Q + L/Q) steps, and autograd keeps the states of all tokens. No logs are added up or subtracted
but over whole chunks, so any decay is exact.

Legend: B batch, H heads in G groups of R, L tokens in Z chunks of Q, N state, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from matmix.ops.diagonal_recurrence import run_tokens
from matmix.ops.gpu import in_triton
from matmix.ops.operator import BY_TOKENS, Operator, Room, seen
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.private import in_jit_trace
from matmix.ops.scan import bounded, carry, cut, join, recurrence
from matmix.ops.sizes import joint_batch, known

# values, outputs, inputs, log decay, clock, step and initial state of ``diagonal_scan``
Factors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def diagonal_scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    clock: Tensor | None = None,
    step: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence above. O(L N W) operations a head.

    Args:
        values: v, ``(B, H, L, W)``.
        outputs: C, ``(B or 1, G, L, N)``; G divides H.
        inputs: B, ``(B or 1, G, L, N)``.
        log_decay: a, ``(B or 1, H, L or 1, N)``, at most 0; a 1 says that it is the same at every token.
        clock: factors of a, ``(B or 1, H, L)``, at least 0; so rates and step sizes need not be multiplied out.
        step: s, ``(B or 1, H, L)``; absent: 1.
        initial: the state before the first token, ``(B or 1, H, W, N)``.
        chunk: Q, tokens that are worked on together; the result does not depend on it. None: a good number.

    Returns:
        The outputs ``(B, H, L, W)`` and the state after the last token ``(B, H, W, N)``, in the widest dtype given
        (float32 at least).
    """
    if seen():
        tied = step is not None and step is clock
        untied = (values, outputs, inputs, log_decay, clock, None if tied else step, initial)
        mixed, last = DIAGONAL_SCAN(*untied, tied, chunk)
        return mixed, last
    given = (values, outputs, inputs, log_decay, clock, step, initial)
    return _by_triton(given, chunk) if in_triton(*given, transforms=True) else _by_torch(given, chunk)


def _by_triton(given: Factors, chunk: int | None) -> tuple[Tensor, Tensor]:
    from matmix.ops.diagonal_scan_triton import scan

    values, outputs, inputs, log_decay, clock, step, initial = given
    with full_precision(values.device):
        values, outputs, inputs, log_decay = (t.float() for t in (values, outputs, inputs, log_decay))
        ticks, initial = (t if t is None else t.float() for t in (clock, initial))
        step = ticks if step is clock else None if step is None else step.float()  # one tensor stays one
        return scan(values, outputs, inputs, log_decay, ticks, step, initial, chunk=chunk)


def _by_torch(given: Factors, chunk: int | None) -> tuple[Tensor, Tensor]:
    values, outputs, inputs, log_decay, clock, step, initial = given
    traced = torch.compiler.is_compiling() or in_jit_trace()
    run = by_chunks if traced or values.device.type not in ("cpu", "meta") else by_tokens
    dtype = working_dtype(values, outputs, inputs, log_decay)
    with full_precision(values.device):
        written = values.to(dtype)
        written = written if step is None else written * step.to(dtype).unsqueeze(-1)
        outputs, inputs, log_decay = (t.to(dtype) for t in (outputs, inputs, log_decay))
        clock, initial = (t if t is None else t.to(dtype) for t in (clock, initial))
        return run(written, outputs, inputs, log_decay, clock, initial, chunk=chunk)


def by_tokens(
    written: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    clock: Tensor | None,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``diagonal_scan`` one token after the other; factors of one dtype, ``written = s v``, shapes as there."""
    _, heads, length, width = written.shape
    given = (written, outputs, inputs, log_decay, clock, initial)
    batch = joint_batch(given)
    groups, states = outputs.shape[1], outputs.shape[3]
    repeat, streams = heads // groups, batch * groups

    def by_token(tokens: Tensor) -> Tensor:  # (B or 1, G or H, L, ...) as (L, B G, ...)
        tokens = tokens.expand(batch, *tokens.shape[1:])
        tokens = tokens.unflatten(1, (groups, tokens.shape[1] // groups)).movedim(3, 0)
        return tokens.flatten(1, 2).contiguous()  # (L, B G, 1 or R, ...)

    def of_state(entries: Tensor) -> Tensor:  # (B or 1, H, ...) as (B G, R, ...)
        return entries.expand(batch, *entries.shape[1:]).reshape(streams, repeat, *entries.shape[2:])

    rate = None
    if log_decay.shape[2] == 1 and length > 1:
        rate = of_state(log_decay.squeeze(2)).mT.contiguous()
        ticks = written.new_ones(length, streams, repeat) if clock is None else by_token(clock)
    else:
        ticks = by_token(log_decay if clock is None else log_decay * clock.unsqueeze(-1)).mT.contiguous()
    if initial is None:
        start = written.new_zeros(streams, states, repeat, width)
    else:
        start = of_state(initial).movedim(-1, 1).contiguous()
    read, write = by_token(outputs).squeeze(2), by_token(inputs).squeeze(2)
    mixed, last = run_tokens(by_token(written), write, read, ticks, rate, start, chunk)
    mixed = mixed.unflatten(1, (batch, groups)).flatten(2, 3).permute(1, 2, 0, 3)
    return mixed, last.movedim(1, -1).reshape(batch, heads, width, states)


def by_chunks(
    written: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    clock: Tensor | None,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``diagonal_scan`` with all chunks side by side; arguments as in ``by_tokens``."""
    heads, length = written.shape[1:3]
    groups = outputs.shape[1]
    size = _chunk_size(length, chunk)
    if log_decay.shape[2] == 1 and length > 1:
        ticks = written.new_ones(1, heads, length) if clock is None else clock
        rate = log_decay.unflatten(1, (groups, heads // groups)).unsqueeze(3)  # (B or 1, G, R, 1, 1, N)
        logs = cut(ticks, size, groups).unsqueeze(-1) * rate
    else:
        logs = cut(log_decay if clock is None else log_decay * clock.unsqueeze(-1), size, groups)
    read, write = (cut(t, size).unsqueeze(2) for t in (outputs, inputs))  # (B or 1, G, 1, Z, Q, N)
    new = cut(written, size, groups).unsqueeze(-1) * write.unsqueeze(-2)  # (B, G, R, Z, Q, W, N)
    tokens = list(zip(logs.exp().unsqueeze(-2).unbind(4), new.unbind(4), strict=True))
    entering = None if initial is None else initial.unflatten(1, (groups, heads // groups)).unsqueeze(3)
    if not known(length):
        ends, totals = _run(tokens, None)[-1], bounded(logs.sum(4), logs.dtype)
        start = None if entering is None else entering.squeeze(3).mT
        entering = carry(ends.movedim(-1, 3), totals.mT, start)[0].movedim(3, -1)
    elif size < length:
        ends = _run(tokens, None)[-1]
        totals = logs.sum(4).exp().unsqueeze(-2)
        first = ends[:, :, :, 0]
        before = [torch.zeros_like(first) if entering is None else entering.squeeze(3).expand_as(first)]
        for end, total in zip(ends.unbind(3)[:-1], totals.unbind(3)[:-1], strict=True):
            before.append(torch.addcmul(end, total, before[-1]))
        entering = torch.stack(before, 3)
    states = torch.stack(_run(tokens, entering), 4)
    mixed = (states @ read.unsqueeze(-1)).squeeze(-1)
    return join(mixed, length), states[:, :, :, -1, -1].flatten(1, 2)


def _run(tokens: list[tuple[Tensor, Tensor]], state: Tensor | None) -> list[Tensor]:
    """All chunks side by side through their Q tokens of (decay, what is written): the states after each."""
    states = []
    for decay, new in tokens:
        state = new if state is None else torch.addcmul(new, decay, state)
        states.append(state)
    return states


def diagonal_scan_reference(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    clock: Tensor | None = None,
    step: Tensor | None = None,
    *,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``diagonal_scan`` token by token: the recurrence as it is written. Shapes as there."""
    log_decay = log_decay.expand(-1, -1, values.shape[2], -1)
    decay = (log_decay if clock is None else log_decay * clock.unsqueeze(-1)).exp()
    return recurrence(values, outputs, inputs, decay, step, initial)


def _chunk_size(length: int, wanted: int | None) -> int:
    """A chunk length: near the fewest steps, in whole chunks."""
    if not known(length):
        return 16 if wanted is None else wanted
    if wanted is None:
        wanted = 16
        while 16 * wanted * wanted < length:  # a quarter of the square root, in arithmetic that compilers follow
            wanted += 1
    wanted = min(wanted, length)
    return -(-length // -(-length // wanted))


# ------------------------------------------------------------------ the operator


def _unpacked(*given: Any) -> tuple[Any, int | None]:
    """The factors of ``diagonal_scan``, where ``tied`` with the clock as the step, and the chunk."""
    *factors, clock, step, initial, tied, chunk = given
    return (*factors, clock, clock if tied else step, initial), chunk


def _reference(*given: Any) -> tuple[Tensor, Tensor]:
    return _by_torch(*_unpacked(*given))


def _kernel(*given: Any) -> tuple[Tensor, Tensor]:
    return _by_triton(*_unpacked(*given))


def _rooms(*given: Any) -> tuple[Room, Room]:
    values, outputs = given[:2]
    batch, (heads, length, width) = joint_batch(given[:-2]), values.shape[1:]
    dtype = working_dtype(*given[:4])
    return (
        Room((batch, heads, length, width), dtype, BY_TOKENS),
        Room((batch, heads, width, outputs.shape[3]), dtype, (0, 3, 1, 2)),
    )


DIAGONAL_SCAN = Operator(
    "diagonal_scan",
    (
        *("Tensor values", "Tensor outputs", "Tensor inputs", "Tensor log_decay"),
        *("Tensor? clock", "Tensor? step", "Tensor? initial"),
    ),
    ("bool tied", "SymInt? chunk"),
    reference=_reference,
    rooms=_rooms,
    kernel=_kernel,
    results=2,
)
