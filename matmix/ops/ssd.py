"""Products with semiseparable and quasiseparable matrices of one decay a head, by the way that is best where they run.

On a GPU that is ``scan_triton``, elsewhere ``matmix.ops.scan``; compilers and exporters see one operator for either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops import scan
from matmix.ops.gpu import in_triton
from matmix.ops.operator import BY_TOKENS, Given, Operator, Room, seen
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import joint_batch

Factors = tuple[Tensor, Tensor, Tensor, Tensor | None]  # outputs, inputs, log decay and step of a triangle


def ssd_scan(
    values: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    log_decay: Tensor,
    step: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of ``matmix.ops.scan``, with one decay a token and head, by chunks.

    O(L (Q (N G/H + W) + N W)) operations a head and O(L Q) memory a head; no step of it is a loop over tokens.

    Args:
        values: v, ``(B, H, L, W)``.
        outputs: C, ``(B or 1, G, L, N)``; G divides H.
        inputs: B, ``(B or 1, G, L, N)``.
        log_decay: a, ``(B or 1, H, L)``, at most 0 (-inf forgets everything).
        step: s, ``(B or 1, H, L)``; absent: 1.
        initial: the state before the first token, ``(B or 1, H, W, N)``.
        chunk: Q; the result does not depend on it. None: a good one for the shape.

    Returns:
        The outputs ``(B, H, L, W)`` and the state after the last token ``(B, H, W, N)``, in the widest dtype given
        (float32 at least).
    """
    given = (values, outputs, inputs, log_decay, step, initial)
    if seen():
        mixed, last = SSD_SCAN(*given, working_dtype(*given[:4]), chunk)
        return mixed, last
    if by_kernels(*given):
        return _by_triton(*given, dtype=torch.float32)
    return scan.by_blocks(*given[:-1], initial=initial, chunk=chunk)


def triangle_product(values: Tensor, factors: Factors, *, chunk: int | None, transposed: bool = False) -> Tensor:
    """``Semiseparable(*factors) @ values``, or the transposed matrix times them; ``(B, H, L, W)``."""
    if not transposed:
        if seen():
            return SSD_SCAN(values, *factors, None, values.dtype, chunk)[0]
        if by_kernels(values, *factors):
            return _by_triton(values, *factors)[0]
    outputs, inputs, log_decay, _ = factors
    dtype = working_dtype(values, outputs, inputs, log_decay)
    length, width = values.shape[2:]
    size = scan.chunk_size(length, outputs.shape[3], width, chunk)
    with full_precision(values.device):
        table, flow = scan.causal_blocks(*factors, size, dtype)
        tokens = scan.cut(values.to(dtype), size, outputs.shape[1])
        if transposed:
            table, flow = table.mT, flow.transposed
        mixed, _ = scan.transfer(flow, tokens, table @ tokens, back=transposed)
        return scan.join(mixed, length)


def two_sided_product(
    values: Tensor, lower: Factors, upper: Factors, skip: Tensor, *, chunk: int | None, transposed: bool = False
) -> Tensor:
    """``Quasiseparable(lower, upper, skip) @ values``, or the transposed matrix times them; ``(B, H, L, W)``."""
    if not transposed:
        if seen():
            return TWO_SIDED_SCAN(values, *lower, *upper, skip, chunk)[0]
        if by_kernels(values, *lower, *upper, skip):
            return _two_sided_by_triton(values, lower, upper, skip)
    return _two_sided_by_blocks(values, lower, upper, skip, chunk=chunk, transposed=transposed)


def by_kernels(values: Tensor, outputs: Tensor, *rest: Tensor | None) -> bool:
    """Whether ``scan_triton`` takes these."""
    return _small(values, outputs) and in_triton(values, outputs, *rest)


def _small(values: Tensor, outputs: Tensor, *_: Any) -> bool:
    """Few enough states and columns for ``scan_triton``, whose loops over them are unrolled."""
    return max(values.shape[3], outputs.shape[3]) <= 256


def _by_triton(*given: Any, **options: Any) -> tuple[Tensor, Tensor]:
    from matmix.ops.scan_triton import scan as by_triton  # Triton is imported where it runs

    return by_triton(*given, **options)


def _two_sided_by_blocks(
    values: Tensor, lower: Factors, upper: Factors, skip: Tensor, *, chunk: int | None, transposed: bool = False
) -> Tensor:
    """Both tables in one product, and nothing flipped."""
    dtype = working_dtype(values, skip, lower[0], lower[2])
    values, length = values.to(dtype), values.shape[2]
    size = scan.chunk_size(length, lower[0].shape[3], values.shape[3], chunk)
    with full_precision(values.device):
        table, forth, back = scan.two_sided_blocks(lower, upper, size, dtype)
        if transposed:
            table, forth, back = table.mT, back.transposed, forth.transposed
        tokens = scan.cut(values, size, lower[0].shape[1])
        mixed, _ = scan.transfer(forth, tokens, table @ tokens)
        mixed, _ = scan.transfer(back, tokens, mixed, back=True)
        return torch.addcmul(scan.join(mixed, length), skip.to(dtype).unsqueeze(-1), values)


def _two_sided_by_triton(values: Tensor, lower: Factors, upper: Factors, skip: Tensor) -> Tensor:
    """Both recurrences in kernels, moved by a token."""
    forth, back = _by_triton(values, *lower)[0], _by_triton(values, *upper, flip=True)[0]
    mixed = F.pad(forth, (0, 0, 1, -1)) + F.pad(back, (0, 0, -1, 1))
    return torch.addcmul(mixed, skip.to(mixed.dtype).unsqueeze(-1), values)


# ------------------------------------------------------------------ the operators


def _reference(*given: Any) -> tuple[Tensor, Tensor]:
    *factors, initial, _, chunk = given
    return scan.by_blocks(*factors, initial=initial, chunk=chunk)


def _rooms(*given: Any) -> tuple[Room, Room]:
    *tensors, dtype, _ = given
    values, outputs = tensors[:2]
    batch, (heads, length, width) = joint_batch(tensors), values.shape[1:]
    state = (batch, heads, width, outputs.shape[3])
    return Room((batch, heads, length, width), dtype, BY_TOKENS), Room(state, working_dtype(*tensors[:4]), (0, 1, 3, 2))


def _kernel(*given: Any) -> tuple[Tensor, Tensor]:
    *tensors, dtype, _ = given
    return _by_triton(*tensors, dtype=dtype)


def _gradients(d_results: Given, given: Given, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    from matmix.ops.scan_triton import back

    return back(*d_results, *given[:6])


def _two_sided_reference(*given: Any) -> tuple[Tensor]:
    values, lower, upper, skip, chunk = given[0], given[1:5], given[5:9], given[9], given[10]
    return (_two_sided_by_blocks(values, lower, upper, skip, chunk=chunk),)


def _two_sided_room(values: Tensor, *given: Any) -> tuple[Room]:
    dtype = working_dtype(values, given[8], given[0], given[2])
    return (Room((joint_batch((values, *given[:-1])), *values.shape[1:]), dtype, BY_TOKENS),)


def _two_sided_kernel(*given: Any) -> tuple[Tensor]:
    return (_two_sided_by_triton(given[0], given[1:5], given[5:9], given[9]),)


def _two_sided_gradients(d_results: Given, given: Given, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    from matmix.ops.scan_triton import back

    (d_mixed,) = d_results
    values, lower, upper, skip = given[0], given[1:5], given[5:9], given[9]
    d_forth, d_back = F.pad(d_mixed, (0, 0, -1, 1)), F.pad(d_mixed, (0, 0, 1, -1))
    d_values, *d_lower, _ = back(d_forth, None, values, *lower, None)
    d_other, *d_upper, _ = back(d_back, None, values, *upper, None, flip=True)
    assert d_values is not None and d_other is not None
    d_values = d_values + d_other + skip.unsqueeze(-1) * d_mixed
    return (d_values, *d_lower, *d_upper, (values * d_mixed).sum(-1))


_TRIANGLE = ("Tensor outputs", "Tensor inputs", "Tensor log_decay", "Tensor? step")
SSD_SCAN = Operator(
    "ssd_scan",
    ("Tensor values", *_TRIANGLE, "Tensor? initial"),
    ("ScalarType dtype", "SymInt? chunk"),
    results=2,
    reference=_reference,
    rooms=_rooms,
    takes=_small,
    kernel=_kernel,
    gradients=_gradients,
)
TWO_SIDED_SCAN = Operator(
    "two_sided_scan",
    ("Tensor values", *_TRIANGLE, *(f"{kind} back_{name}" for kind, name in map(str.split, _TRIANGLE)), "Tensor skip"),
    ("SymInt? chunk",),
    results=1,
    reference=_two_sided_reference,
    rooms=_two_sided_room,
    takes=_small,
    kernel=_two_sided_kernel,
    gradients=_two_sided_gradients,
)
