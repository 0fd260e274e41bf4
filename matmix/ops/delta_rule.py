"""The triangular solve of the delta rule by chunks (WY form, arXiv 2406.06484, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.gpu import in_triton
from matmix.ops.operator import BY_TOKENS, Operator, Room, seen
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import cut
from matmix.ops.sizes import exporting, first_entries, joint_batch, known, power_of_two

CHUNK = 64
MOST = 256  # width of the factors that the kernels of ``unit_lower_triton`` take


def unit_lower_product(
    left: Tensor,
    right: Tensor,
    values: Tensor,
    *,
    chunk: int = CHUNK,
    segments: Tensor | None = None,
    flip: bool = False,
) -> Tensor:
    """``unit_lower_solve`` by the way that is best where it runs; compilers and exporters see one operator.

    Args:
        flip: from the last token to the first: j > i in the sum.
    """
    if segments is None:
        if seen():
            return UNIT_LOWER_SOLVE(left, right, values, flip, chunk)[0]
        if _narrow(left) and in_triton(left, right, values):
            from matmix.ops.unit_lower_triton import solve

            return solve(left, right, values, flip=flip)
    if flip:
        left, right, values = left.flip(2), right.flip(2), values.flip(2)
        segments = None if segments is None else segments.flip(1)
    with full_precision(values.device):
        solved = unit_lower_solve(left, right, values, chunk, segments)
    return solved.flip(2) if flip else solved


def unit_lower_solve(
    left: Tensor, right: Tensor, values: Tensor, chunk: int = CHUNK, segments: Tensor | None = None
) -> Tensor:
    """``u`` with ``u_i + sum_{j<i} (left_i . right_j) u_j = v_i``, j in the segment of i.

    Args:
        left: ``(B or 1, H, L, N)``.
        right: ``(B or 1, H, L, N)``.
        values: v, ``(B, H, L, W)``.
        chunk: Q; the result does not depend on it.
        segments: ``(B or 1, L)`` integers, one for each run of tokens; None is one segment.

    Returns:
        ``(B, H, L, W)``, float32 at least.
    """
    dtype = working_dtype(left, right, values)
    length, width = values.shape[2:]
    left, right, values = (t.to(dtype) for t in (left, right, values))
    if known(length):
        size = max(1, min(chunk, length))
        left, right, values = (cut(t, size) for t in (left, right, values))  # (B, H, Z, Q, .)
    else:  # an open number of chunks cannot be gone through one by one: a single one
        left, right, values = (t.unsqueeze(2) for t in (left, right, values))
    triangle = (left @ right.mT).tril(-1)  # unitriangular: the ones of the diagonal are not read
    kept: list[Tensor] | None = None
    if segments is not None:
        owner = cut(segments.unsqueeze(1), size)  # (B, 1, Z, Q)
        triangle = triangle.masked_fill(owner.unsqueeze(-1) != owner.unsqueeze(-2), 0)
        # A chunk reads the state with the segment that it goes on with, and leaves one of its last segment alone.
        last = owner[..., -1:]
        before = torch.cat((last[:, :, :1], last[:, :, :-1]), 2)
        left = left.masked_fill((owner != before).unsqueeze(-1), 0)
        right = right.masked_fill((owner != last).unsqueeze(-1), 0)
        kept = list((last == before).unsqueeze(-1).to(dtype).unbind(2))
    if values.shape[2] == 1:
        return _solve(triangle, values).squeeze(2)
    batch = torch.broadcast_shapes(left.shape[:1], right.shape[:1], values.shape[:1])[0]
    sides = torch.cat([t.expand(batch, -1, -1, -1, -1) for t in (values, left)], -1)
    own, share = _solve(triangle, sides).split((width, left.shape[-1]), -1)
    # The state S = sum_j right_j u_j^T of all earlier chunks (N x W): u = own - share S.
    # Unbound once: the gradient of a slice would be as large as the whole, for every chunk.
    state, solved = None, []
    for index, (one, read, write) in enumerate(zip(own.unbind(2), share.unbind(2), right.unbind(2), strict=True)):
        solved.append(one if state is None else one - read @ state)
        new = write.mT @ solved[-1]
        if state is not None:
            new = new + (state if kept is None else kept[index] * state)
        state = new
    return first_entries(torch.cat(solved, 2), 2, length)


def _solve(triangle: Tensor, sides: Tensor) -> Tensor:
    """``(I + triangle)^-1 sides``, of strictly lower triangles ``(..., Q, Q)``."""
    size = triangle.shape[-1]
    if exporting() and known(size):  # ONNX has no triangular solve
        return _inverse(triangle) @ sides
    return torch.linalg.solve_triangular(triangle, sides, upper=False, unitriangular=True)


def _inverse(triangle: Tensor) -> Tensor:
    """``(I + triangle)^-1`` of strictly lower triangles ``(..., Q, Q)``, Q a number, in log2 Q steps of products.

    Blocks of the diagonal, each of two that are inverted: ``[[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]``.
    """
    size = triangle.shape[-1]
    most = power_of_two(size)
    padded = F.pad(triangle, (0, most - size, 0, most - size))
    inverse = triangle.new_ones(*triangle.shape[:-2], most, 1, 1)
    half = 1
    while half < most:
        blocks = padded.unflatten(-1, (-1, 2 * half)).unflatten(-3, (-1, 2 * half)).diagonal(0, -4, -2).movedim(-1, -3)
        upper, lower = inverse.unflatten(-3, (-1, 2)).unbind(-3)
        corner = -lower @ blocks[..., half:, :half] @ upper
        inverse = torch.cat((F.pad(upper, (0, half)), torch.cat((corner, lower), -1)), -2)
        half *= 2
    return inverse.squeeze(-3)[..., :size, :size]


# ------------------------------------------------------------------ the operator


def _narrow(left: Tensor, *_: Any) -> bool:
    return left.shape[3] <= MOST


def _reference(left: Tensor, right: Tensor, values: Tensor, flip: bool, chunk: int) -> tuple[Tensor]:
    given = (left, right, values)
    left, right, values = (t.flip(2) for t in given) if flip else given
    solved = unit_lower_solve(left, right, values, chunk)
    return (solved.flip(2) if flip else solved,)


def _room(left: Tensor, right: Tensor, values: Tensor, flip: bool, chunk: int) -> tuple[Room]:
    shape = (joint_batch((left, right, values)), *values.shape[1:])
    return (Room(shape, working_dtype(left, right, values), BY_TOKENS),)


def _kernel(left: Tensor, right: Tensor, values: Tensor, flip: bool, chunk: int) -> tuple[Tensor]:
    from matmix.ops.unit_lower_triton import solve

    return (solve(left, right, values, flip=flip),)


UNIT_LOWER_SOLVE = Operator(
    "unit_lower_solve",
    ("Tensor left", "Tensor right", "Tensor values"),
    ("bool flip", "SymInt chunk"),
    reference=_reference,
    rooms=_room,
    kernel=_kernel,
    takes=_narrow,
)
