"""Products with semiseparable matrices whose decay is diagonal, by tables: for heads of many columns.

    S_i[n] = exp(a_i[n]) S_{i-1}[n] + B_i[n] v_i,   y_i = sum_n C_i[n] S_i[n]

The scan of ``diagonal_scan`` touches N x W numbers a token. Where the W columns of a head share their decays (gated
linear attention, arXiv 2312.06635, section 4), chunks of Q tokens are matrix products instead: the table of a chunk,

    T[i, j] = sum_n C_i[n] B_j[n] exp(a_{j+1}[n] + ... + a_i[n]),

is not of rank N with factors that stay finite, but each of its off-diagonal blocks is: written from the border between
the rows and the columns of the block, all exponents are sums of decays, never positive. So the table is built by
halves: entries of a few tokens one by one, then blocks of twice, four times, eight times that size. It costs
N (b + log2(Q / b)) exponentials a token instead of N Q, and no decay is too strong or too weak for it.

Legend: B batch, H heads, L tokens in Z chunks of Q, N state, W width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.gpu import in_triton
from matmix.ops.operator import BY_TOKENS, Given, Operator, Room, seen
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import carry, cut
from matmix.ops.sizes import joined, joint_batch, known, power_of_two, surely

_BASE = 4  # tokens whose entries are computed one by one
_CHUNK = 32


class Blocks(NamedTuple):
    """The chunks of the matrix: dense on the diagonal, ``left carried right^T`` off it."""

    table: Tensor  # (B, H, Z, Q, Q)
    left: Tensor  # (B, H, Z, Q, N): C times the decay from the border of the chunk
    right: Tensor  # (B, H, Z, Q, N): B times the decay to the end of the chunk
    total: Tensor  # (B, H, Z, N) log decay of a whole chunk


def channel_blocks(outputs: Tensor, inputs: Tensor, log_decay: Tensor, chunk: int | None = None) -> Blocks:
    """The matrix by chunks.

    Args:
        outputs: C, ``(B or 1, H, L, N)``.
        inputs: B, ``(B or 1, H, L, N)``.
        log_decay: a, ``(B or 1, H, L, N)``, at most 0 (-inf forgets everything).
        chunk: Q, rounded up to a power of two; the result does not depend on it. None chooses.
    """
    dtype = working_dtype(outputs, inputs, log_decay)
    size, length = power_of_two(_CHUNK if chunk is None else chunk), outputs.shape[2]
    if known(length):
        size = min(size, power_of_two(length))
    # In float64: sums are subtracted below. -inf becomes a number whose exponential is 0.
    bounded = log_decay.double().clamp(min=-800.0 if dtype == torch.float64 else -128.0)
    outputs, inputs, steps = (cut(t, size) for t in (outputs.to(dtype), inputs.to(dtype), bounded))
    upto = steps.cumsum(-2)
    end = upto[..., -1:, :]
    left = outputs * upto.to(dtype).exp()
    right = inputs * (end - upto).to(dtype).exp()
    return Blocks(_table(outputs, inputs, upto, size), left, right, end.squeeze(-2))


def _table(outputs: Tensor, inputs: Tensor, upto: Tensor, size: int) -> Tensor:
    """``T`` of every chunk, ``(B, H, Z, Q, Q)``, from the decays ``upto`` each token, by halves."""
    dtype, base = outputs.dtype, min(_BASE, size)

    def parts(block: int, *tensors: Tensor) -> list[Tensor]:
        return [t.unflatten(3, (size // block, block)) for t in tensors]  # (B, H, Z, Q / block, block, N)

    rows, columns, logs = parts(base, outputs, inputs, upto)
    keep = torch.ones(base, base, dtype=torch.bool, device=upto.device).tril().unsqueeze(-1)
    between = (logs.unsqueeze(-2) - logs.unsqueeze(-3)).to(dtype).masked_fill(~keep, -torch.inf).exp()
    table = ((between * columns.unsqueeze(-3)) @ rows.unsqueeze(-1)).squeeze(-1)
    block = base
    while block < size:
        rows, columns, logs = parts(block, outputs, inputs, upto)
        upper, lower = logs[:, :, :, 0::2], logs[:, :, :, 1::2]
        border = upper[..., -1:, :]
        below = rows[:, :, :, 1::2] * (lower - border).to(dtype).exp()
        below = below @ (columns[:, :, :, 0::2] * (border - upper).to(dtype).exp()).mT
        first, second = table[:, :, :, 0::2], table[:, :, :, 1::2]
        table = torch.cat((F.pad(first, (0, block)), torch.cat((below, second), -1)), -2)
        block *= 2
    return table.squeeze(3)


def channel_product(blocks: Blocks, values: Tensor, *, transposed: bool = False) -> Tensor:
    """The matrix (or its transpose) times values ``(B, H, L, W)``, in the dtype of the blocks."""
    table, left, right, total = blocks
    tokens = cut(values.to(table.dtype), table.shape[-1])
    mixed = (table.mT if transposed else table) @ tokens
    if not surely(table.shape[2] == 1):
        if transposed:
            left, right = right, left
        given = (right.mT @ tokens).movedim(2, 3)  # (B, H, N, Z, W)
        logs = total.mT
        if transposed:
            given, logs = given.flip(3), logs.flip(3)
        entering, _ = carry(given, logs, None)
        entering = entering.flip(3) if transposed else entering
        mixed = mixed + left @ entering.movedim(3, 2)
    return joined(mixed, 2, values.shape[2])


def channel_scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    *,
    initial: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence above.

    Args:
        values: v, ``(B, H, L, W)``.
        outputs, inputs, log_decay, chunk: as for ``channel_blocks``.
        initial: the state before the first token, ``(B, H, W, N)``; zeros where absent.

    Returns:
        The outputs ``(B, H, L, W)`` and the state after the last token ``(B, H, W, N)``, float32 at least.
    """
    if seen():
        dtype = working_dtype(outputs, inputs, log_decay)
        mixed, last = CHANNEL_SCAN(values, outputs, inputs, log_decay, dtype, chunk)
    elif in_triton(values, outputs, inputs, log_decay):
        from matmix.ops.channel_scan_triton import scan

        mixed, last = scan(values, outputs, inputs, log_decay, dtype=torch.float32)
    else:
        mixed, last = by_tables(values, outputs, inputs, log_decay, chunk=chunk)
    if initial is None:
        return mixed, last
    with full_precision(values.device):
        kept = log_decay.double().cumsum(2).to(mixed.dtype).exp()  # of the first state, up to every token
        initial = initial.to(mixed.dtype)
        mixed = mixed + (outputs.to(mixed.dtype) * kept) @ initial.mT
        return mixed, last + kept[:, :, -1:] * initial


def gated_product(
    values: Tensor, factors: tuple[Tensor, Tensor, Tensor], *, chunk: int | None, transposed: bool = False
) -> Tensor:
    """``GatedSemiseparable(*factors) @ values``, or the transposed matrix times them; ``(B, H, L, W)``."""
    if not transposed:
        if seen():
            return CHANNEL_SCAN(values, *factors, values.dtype, chunk)[0]
        if in_triton(values, *factors):
            from matmix.ops.channel_scan_triton import scan

            return scan(values, *factors)[0]
    with full_precision(values.device):
        return channel_product(channel_blocks(*factors, chunk), values, transposed=transposed)


def by_tables(
    values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """``channel_scan`` in PyTorch's operations; arguments as there."""
    with full_precision(values.device):
        blocks = channel_blocks(outputs, inputs, log_decay, chunk)
        mixed = channel_product(blocks, values)
        tokens = cut(values.to(mixed.dtype), blocks.table.shape[-1])
        _, last = carry((blocks.right.mT @ tokens).movedim(2, 3), blocks.total.mT, None)
    return mixed, last.mT


# ------------------------------------------------------------------ the operator


def _reference(*given: Any) -> tuple[Tensor, Tensor]:
    *tensors, _, chunk = given
    return by_tables(*tensors, chunk=chunk)


def _rooms(*given: Any) -> tuple[Room, Room]:
    *tensors, dtype, _ = given
    values, outputs = tensors[:2]
    batch, (heads, length, width) = joint_batch(tensors), values.shape[1:]
    state = Room((batch, heads, width, outputs.shape[3]), working_dtype(*tensors[1:]), (0, 1, 3, 2))
    return Room((batch, heads, length, width), dtype, BY_TOKENS), state


def _kernel(*given: Any) -> tuple[Tensor, Tensor]:
    from matmix.ops.channel_scan_triton import scan

    *tensors, dtype, _ = given
    return scan(*tensors, dtype=dtype)


def _gradients(d_results: Given, given: Given, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    from matmix.ops.channel_scan_triton import back

    return back(*d_results, *given[:4], wanted=wanted)


CHANNEL_SCAN = Operator(
    "channel_scan",
    ("Tensor values", "Tensor outputs", "Tensor inputs", "Tensor log_decay"),
    ("ScalarType dtype", "SymInt? chunk"),
    results=2,
    reference=_reference,
    rooms=_rooms,
    kernel=_kernel,
    gradients=_gradients,
)
