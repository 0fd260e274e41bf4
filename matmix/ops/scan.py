"""Products with semiseparable matrices: the chunked block decomposition, beside a reference that is the recurrence.

The recurrence ``S_i = exp(a_i) S_{i-1} + s_i B_i v_i^T, y_i = S_i^T C_i`` (states ``S`` are N x W) is the product with

    M[i, j] = C_i . B_j exp(a_{j+1} + ... + a_i) s_j        for i >= j.

Cut into chunks, the diagonal blocks of M are small dense tables and every other block is ``left * carried * right`` of
rank N (Mamba-2, arXiv 2405.21060, section 6). Every exponent below is a sum of log decays over a run of tokens within
one chunk, so it is never positive. Sums are taken in float64 and subtracted before they are rounded, so that a strong
decay costs its neighbours no digits of float32. A tail is filled up with decay 1 and step 0, which changes nothing.

Legend: B batch, H heads in G groups of R, L tokens in Z chunks of Q, N state, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import first_entries, joined, known, surely, whole

CARRY = 16  # chunks that one table carries over; more are a recurrence of recurrences


class Flow(NamedTuple):
    """One direction of a chunked product: M[i, j] of tokens in different chunks, as ``left * carried * right``."""

    left: Tensor  # (B, G, Z, Q, N): what row i reads
    right: Tensor  # (B, G, Z, Q, N): what column j writes
    row: Tensor  # (B, G, R, Z, Q), 0 to 1: from the border of the chunk to row i
    column: Tensor  # (B, G, R, Z, Q): from column j to the border, times its step
    total: Tensor  # (B, G, R, Z) float64 log decay of a whole chunk

    @property
    def transposed(self) -> Flow:
        """The factors of the transposed blocks, which flow the other way."""
        return Flow(self.right, self.left, self.column, self.row, self.total)


# ------------------------------------------------------------------ the scalar decay of a head


def by_blocks(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    step: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``matmix.ops.ssd.ssd_scan`` in PyTorch's operations; arguments as there."""
    dtype = working_dtype(values, outputs, inputs, log_decay)
    length, width, heads, groups = values.shape[2], values.shape[3], log_decay.shape[1], outputs.shape[1]
    size = chunk_size(length, outputs.shape[3], width, chunk)
    with full_precision(values.device):
        start = None
        if initial is not None:
            start = initial.to(dtype).mT.unflatten(1, (groups, heads // groups))
        tokens = cut(values.to(dtype), size, groups)
        table, flow = causal_blocks(outputs, inputs, log_decay, step, size, dtype)
        mixed, end = transfer(flow, tokens, table @ tokens, start, last=True)
        assert end is not None
        return join(mixed, length), end.flatten(1, 2).mT


def ssd_scan_reference(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    step: Tensor | None = None,
    *,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``matmix.ops.ssd.ssd_scan`` token by token: the recurrence as it is written. Shapes as there."""
    return recurrence(values, outputs, inputs, log_decay.exp().unsqueeze(-1), step, initial)


def recurrence(
    values: Tensor, outputs: Tensor, inputs: Tensor, decay: Tensor, step: Tensor | None, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``S_i = decay_i S_{i-1} + s_i B_i v_i^T, y_i = S_i^T C_i`` token by token, the definition of every scan here.

    Shapes as of ``ssd_scan``; decay ``(B or 1, H, L, N or 1)``.
    """
    heads = decay.shape[1]
    outputs, inputs = (t.repeat_interleave(heads // t.shape[1], 1) for t in (outputs, inputs))
    written = values if step is None else values * step.unsqueeze(-1)
    shape = (values.shape[0], heads, values.shape[3], outputs.shape[3])
    state = values.new_zeros(shape) if initial is None else initial.expand(shape)
    mixed = []
    for i in range(values.shape[2]):
        new = written[:, :, i, :, None] * inputs[:, :, i, None, :]
        state = decay[:, :, i, None] * state + new
        mixed.append((state * outputs[:, :, i, None, :]).sum(-1))
    return torch.stack(mixed, 2), state


def causal_blocks(
    outputs: Tensor, inputs: Tensor, log_decay: Tensor, step: Tensor | None, size: int, dtype: torch.dtype
) -> tuple[Tensor, Flow]:
    """A semiseparable matrix by chunks: its diagonal blocks ``(B, G, R, Z, Q, Q)`` and the flow between them."""
    groups = outputs.shape[1]
    left, right = cut(outputs.to(dtype), size), cut(inputs.to(dtype), size)
    upto = cut(bounded(log_decay, dtype), size, groups).cumsum(-1)  # from the start of the chunk, token included
    end = upto[..., -1:]
    weight = None if step is None else cut(step.to(dtype), size, groups)
    keep = _lower(size, 0, log_decay.device)
    table = _decays(upto, upto, keep, dtype) * (left @ right.mT).unsqueeze(2)
    column = (end - upto).to(dtype).exp()
    if weight is not None:
        table = table * weight.unsqueeze(-2)
        column = column * weight
    return table, Flow(left, right, upto.to(dtype).exp(), column, end.squeeze(-1))


def two_sided_blocks(
    lower: tuple[Tensor, Tensor, Tensor, Tensor | None],
    upper: tuple[Tensor, Tensor, Tensor, Tensor | None],
    size: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Flow, Flow]:
    """Both shifted triangles of a quasiseparable matrix by chunks, the diagonal left at 0.

    ``lower`` and ``upper`` are (outputs, inputs, log_decay, step) in the order of the tokens. Row i reads the state
    after token i - 1 (and that of the way back after i + 1), with the read-out vector of that token.
    """
    groups = lower[0].shape[1]
    # The read-out one token late (early): a token sees neither itself nor, at the ends, anything.
    left_f = cut(F.pad(lower[0].to(dtype), (0, 0, 1, -1)), size)
    left_b = cut(F.pad(upper[0].to(dtype), (0, 0, -1, 1)), size)
    right_f, right_b = cut(lower[1].to(dtype), size), cut(upper[1].to(dtype), size)
    log_f, log_b = (cut(bounded(part[2], dtype), size, groups) for part in (lower, upper))
    upto_f, upto_b = log_f.cumsum(-1), log_b.cumsum(-1)
    before_f, before_b = upto_f - log_f, upto_b - log_b
    end_f, end_b = upto_f[..., -1:], upto_b[..., -1:]

    keep = _lower(size, -1, log_f.device)
    other = keep.mT
    # Below the diagonal tokens j+1 .. i-1 decay, above it i+1 .. j-1: one table of exponents serves both.
    below = before_f.unsqueeze(-1) - upto_f.unsqueeze(-2)
    above = before_b.unsqueeze(-2) - upto_b.unsqueeze(-1)
    exponent = torch.where(keep, below, above).to(dtype).masked_fill(~(keep | other), -torch.inf)
    scores = torch.where(keep, left_f @ right_f.mT, left_b @ right_b.mT)
    table = exponent.exp() * scores.unsqueeze(2)

    column_f, column_b = (end_f - upto_f).to(dtype).exp(), before_b.to(dtype).exp()
    step_f, step_b = (None if part[3] is None else cut(part[3].to(dtype), size, groups) for part in (lower, upper))
    if step_f is not None or step_b is not None:
        one = torch.ones((), dtype=dtype, device=table.device)
        step_f, step_b = (one.expand_as(c) if s is None else s for s, c in ((step_f, column_f), (step_b, column_b)))
        table = table * torch.where(keep, step_f.unsqueeze(-2), step_b.unsqueeze(-2))
        column_f, column_b = column_f * step_f, column_b * step_b
    row_f, row_b = before_f.to(dtype).exp(), (end_b - upto_b).to(dtype).exp()
    forward = Flow(left_f, right_f, row_f, column_f, end_f.squeeze(-1))
    return table, forward, Flow(left_b, right_b, row_b, column_b, end_b.squeeze(-1))


def transfer(
    flow: Flow, tokens: Tensor, onto: Tensor, initial: Tensor | None = None, *, back: bool = False, last: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Add what chunks give to later ones (earlier ones, for ``back``); and the state at the end, if it is wanted.

    Args:
        flow: the factors of the blocks off the diagonal.
        tokens: values by chunks, ``(B, G, R, Z, Q, W)``.
        onto: what the chunks give to themselves, of that shape.
        initial: the state that enters, ``(B, G, R, N, W)``.
        last: whether the state at the end is wanted, ``(B, G, R, N, W)``.
    """
    repeat, chunks, width = tokens.shape[2], tokens.shape[3], tokens.shape[5]
    if initial is None and not last and surely(chunks == 1):
        return onto, None
    # The heads of a group stand side by side, so that they share its B and C in one product.
    wide = (flow.column.unsqueeze(-1) * tokens).movedim(2, -2).flatten(-2)  # (B, G, Z, Q, R W)
    states = (flow.right.mT @ wide).unflatten(-1, (repeat, width)).movedim(-2, 2)  # (B, G, R, Z, N, W)
    size, total = states.shape[-2:], flow.total
    if back:
        states, total = states.flip(3), total.flip(3)
    entering, end = carry(states.flatten(-2), total, None if initial is None else initial.flatten(-2))
    end = end.unflatten(-1, size)
    if initial is None and surely(chunks == 1):
        return onto, end
    entering = (entering.flip(3) if back else entering).unflatten(-1, size)
    across = flow.left @ entering.movedim(2, -2).flatten(-2)  # (B, G, Z, Q, R W)
    across = across.unflatten(-1, (repeat, width)).movedim(-2, 2)
    return torch.addcmul(onto, flow.row.unsqueeze(-1), across), end


def carry(states: Tensor, log_decay: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """``S_z = exp(log_decay_z) S_{z-1} + states_z``: the states before every z and the one after the last.

    The same problem one level up, with B = C = 1: by tables of at most 16 x 17, blocks of blocks beyond that. Where
    the count is open it is one table: up to some 1000 chunks that is less memory than the tables of the chunks.

    Args:
        states: ``(..., Z, K)``.
        log_decay: ``(..., Z)`` float64.
        initial: ``(..., K)``.
    """
    count = states.shape[-2]
    if known(count) and count > CARRY:
        blocks = -(-count // CARRY)
        fill = blocks * CARRY - count
        inner = F.pad(states, (0, 0, 0, fill)).unflatten(-2, (blocks, CARRY))
        logs = F.pad(log_decay, (0, fill)).unflatten(-1, (blocks, CARRY))
        before, after = carry(inner, logs, None)
        entering, last = carry(after, logs.sum(-1), initial)
        reach = (logs.cumsum(-1) - logs).to(states.dtype).exp()
        before = before + reach.unsqueeze(-1) * entering.unsqueeze(-2)
        return first_entries(before.flatten(-3, -2), -2, count), last
    upto = log_decay.cumsum(-1)
    row = F.pad(upto, (1, 0))  # the decays before z = 0 .. Z
    keep = _lower(count + 1, -1, states.device)[:, :count]
    reached = _decays(row, upto, keep, states.dtype) @ states
    if initial is not None:
        reached = reached + row.to(states.dtype).exp().unsqueeze(-1) * initial.unsqueeze(-2)
    return reached.narrow(-2, 0, count), reached.select(-2, count)


# ------------------------------------------------------------------ small parts


def chunk_size(length: int, states: int, width: int, wanted: int | None) -> int:
    """A chunk length for the shape: near the balance of the tables' cost and the states', and filling the tail well."""
    if wanted is None:
        wanted = 64 if surely(states * width >= 2048) else 32
    if not known(length):
        return wanted
    wanted = min(wanted, length)
    return -(-length // -(-length // wanted))


def cut(tokens: Tensor, size: int, groups: int | None = None) -> Tensor:
    """``(B, H, L, ...)`` as chunks ``(B, H, Z, Q, ...)``, the tail filled with zeros; heads as (G, R) if asked for."""
    length = tokens.shape[2]
    chunks = whole(length, size)
    fill = chunks * size - length
    if not surely(fill == 0):
        tokens = F.pad(tokens, (0, 0) * (tokens.dim() - 3) + (0, fill))
    tokens = tokens.unflatten(2, (chunks, size))
    return tokens if groups is None else tokens.unflatten(1, (groups, tokens.shape[1] // groups))


def join(tokens: Tensor, length: int) -> Tensor:
    """``(B, G, R, Z, Q, W)`` as ``(B, H, L, W)``."""
    return joined(tokens.flatten(1, 2), 2, length)


def _lower(size: int, diagonal: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril(diagonal)


def bounded(log_decay: Tensor, dtype: torch.dtype) -> Tensor:
    """In float64, with -inf as a number whose exponential is 0 in ``dtype``: sums of it can be subtracted."""
    return log_decay.double().clamp(min=-800.0 if dtype == torch.float64 else -128.0)


def _decays(row: Tensor, column: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(row_i - column_j)`` where ``keep``, else 0. Masked before the exponential, which might overflow there."""
    return (row.unsqueeze(-1) - column.unsqueeze(-2)).to(dtype).masked_fill(~keep, -torch.inf).exp()


def share(values: Tensor, batch: int, heads: int) -> Tensor:
    """Values as ``(batch, heads, L, W')``: samples or heads that share a matrix stand side by side in the width."""
    if heads == 1 and values.shape[1] > 1:
        values = values.transpose(1, 2).flatten(2).unsqueeze(1)
    if batch == 1 and values.shape[0] > 1:
        values = values.permute(1, 2, 0, 3).flatten(2).unsqueeze(0)
    return values


def unshare(mixed: Tensor, like: Tensor, batch: int, heads: int) -> Tensor:
    """The products of shared values, as the values ``like`` stood."""
    size, count, _, width = like.shape
    if batch == 1 and size > 1:
        mixed = mixed.squeeze(0).unflatten(-1, (size, mixed.shape[-1] // size)).permute(2, 0, 1, 3)
    if heads == 1 and count > 1:
        mixed = mixed.squeeze(1).unflatten(-1, (count, width)).transpose(1, 2)
    return mixed
