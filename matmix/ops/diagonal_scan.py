"""Products with semiseparable matrices whose decay is diagonal: one rate a channel and state (S6, S4D-Real).

    S_i[n] = exp(a_i[n]) S_{i-1}[n] + s_i B_i[n] v_i,   y_i = sum_n C_i[n] S_i[n]

No small table of scores serves all states here, so the recurrence itself runs. On a CPU it does so token by token, in
cache and in place (``diagonal_recurrence``). What a compiler traces, and other devices, want few steps on large
tensors: two levels, all chunks of Q tokens side by side from zero, then over the chunks' last states, then all chunks
again from the states that truly enter them. That is O(Q + L/Q) steps, and autograd keeps the states of all tokens. No
logs are added up or subtracted but over whole chunks, so any decay is exact.

Legend: B batch, H heads in G groups of R, L tokens in Z chunks of Q, N state, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matmix.ops.diagonal_recurrence import run_tokens
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import cut, join, recurrence


class _Tokens(NamedTuple):
    """The factors at token q of every chunk, one tensor a q; N stands last, as every step runs over it."""

    written: tuple[Tensor, ...]  # s v, (B, G, Z, R, W)
    inputs: tuple[Tensor, ...]  # B, (B, G, Z, N)
    outputs: tuple[Tensor, ...]  # C, (B, G, Z, N)
    clock: tuple[Tensor, ...]  # (B, G, Z, R) times the rate, or (B, G, Z, R, N) where there is none
    rate: Tensor | None  # (B, G, 1, R, N)

    def log_decay(self, clock: Tensor) -> Tensor:
        """``(B, G, Z, R, N)``; multiplied out for one token at a time."""
        return clock if self.rate is None else clock.unsqueeze(-1) * self.rate


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
    traced = torch.compiler.is_compiling()
    run = by_chunks if traced or values.device.type != "cpu" else by_tokens
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
    batch = next((t.shape[0] for t in given if t is not None and t.shape[0] != 1), 1)
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
    _, heads, length, width = written.shape
    groups = outputs.shape[1]
    size = _chunk_size(length, chunk)
    tokens = _tokens(written, outputs, inputs, log_decay, clock, size)
    start = None if initial is None else initial.unflatten(1, (groups, heads // groups))
    entering = None if start is None else start.unsqueeze(2)
    if size < length:
        _, ends = _run(tokens, None, read=False)
        entering = _entering(ends, tokens.log_decay(torch.stack(tokens.clock).sum(0)).exp(), start)
    mixed, last = _run(tokens, entering, read=True)
    mixed = torch.stack(mixed, 3).unflatten(-1, (heads // groups, width))  # (B, G, Z, Q, R, W)
    return join(mixed.movedim(4, 2), length), last[:, :, -1].flatten(1, 2)


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


def _tokens(
    written: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor, clock: Tensor | None, size: int
) -> _Tokens:
    groups, rate = outputs.shape[1], None
    if log_decay.shape[2] == 1 and written.shape[2] > 1:
        rate = log_decay.unflatten(1, (groups, log_decay.shape[1] // groups)).transpose(2, 3)
        clock = written.new_ones(1, log_decay.shape[1], written.shape[2]) if clock is None else clock
    else:
        clock = log_decay if clock is None else log_decay * clock.unsqueeze(-1)
    written_q, clock_q = (cut(t, size, groups).transpose(2, 3).unbind(4) for t in (written, clock))
    inputs_q, outputs_q = (cut(t, size).unbind(3) for t in (inputs, outputs))
    return _Tokens(written_q, inputs_q, outputs_q, clock_q, rate)


def _run(tokens: _Tokens, state: Tensor | None, *, read: bool) -> tuple[list[Tensor], Tensor]:
    """All chunks side by side through their Q tokens: what is read, ``(B, G, Z, R W)`` each, and the last states."""
    mixed = []
    for written, inputs, outputs, clock in zip(*tokens[:4], strict=True):
        new = written.unsqueeze(-1) * inputs[:, :, :, None, None, :]
        decay = tokens.log_decay(clock).exp().unsqueeze(-2)
        state = new if state is None else torch.addcmul(new, decay, state)
        if read:
            mixed.append((state.flatten(3, 4) @ outputs.unsqueeze(-1)).squeeze(-1))
    assert state is not None
    return mixed, state


def _entering(ends: Tensor, decay: Tensor, state: Tensor | None) -> Tensor:
    """The state that enters each chunk, from what each leaves when it starts at zero: ``(B, G, Z, R, W, N)``."""
    before = []
    for end, factor in zip(ends.unbind(2), decay.unsqueeze(-2).unbind(2), strict=True):
        state = torch.zeros_like(end) if state is None else state.expand_as(end)
        before.append(state)
        state = torch.addcmul(end, factor, state)
    return torch.stack(before, 2)


def _chunk_size(length: int, wanted: int | None) -> int:
    """A chunk length: near the fewest steps, in whole chunks."""
    if wanted is None:
        wanted = 16
        while 16 * wanted * wanted < length:  # a quarter of the square root, in arithmetic that compilers follow
            wanted += 1
    wanted = min(wanted, length)
    return -(-length // -(-length // wanted))
