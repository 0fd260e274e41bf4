"""The triangular solve of the delta rule by chunks (WY form, arXiv 2406.06484, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.ops.precision import working_dtype
from matmix.ops.scan import cut, leading

CHUNK = 64
MOST = 256  # width of the factors that the kernels of ``unit_lower_triton`` take


def unit_lower_solve(left: Tensor, right: Tensor, values: Tensor, chunk: int = CHUNK) -> Tensor:
    """``u`` with ``u_i + sum_{j<i} (left_i . right_j) u_j = v_i``.

    Args:
        left: ``(B or 1, H, L, N)``.
        right: ``(B or 1, H, L, N)``.
        values: v, ``(B, H, L, W)``.
        chunk: Q; the result does not depend on it.

    Returns:
        ``(B, H, L, W)``, float32 at least.
    """
    dtype = working_dtype(left, right, values)
    length, width = values.shape[2:]
    size = max(1, min(chunk, length))
    left, right, values = (cut(t.to(dtype), size) for t in (left, right, values))  # (B, H, Z, Q, .)
    triangle = (left @ right.mT).tril(-1)  # unitriangular: the ones of the diagonal are not read
    if values.shape[2] == 1:
        return torch.linalg.solve_triangular(triangle, values, upper=False, unitriangular=True).squeeze(2)
    batch = torch.broadcast_shapes(left.shape[:1], right.shape[:1], values.shape[:1])[0]
    sides = torch.cat([t.expand(batch, -1, -1, -1, -1) for t in (values, left)], -1)
    own, share = torch.linalg.solve_triangular(triangle, sides, upper=False, unitriangular=True).split(
        (width, left.shape[-1]), -1
    )
    # The state S = sum_j right_j u_j^T of all earlier chunks (N x W): u = own - share S.
    # Unbound once: the gradient of a slice would be as large as the whole, for every chunk.
    state, solved = None, []
    for one, read, write in zip(own.unbind(2), share.unbind(2), right.unbind(2), strict=True):
        solved.append(one if state is None else one - read @ state)
        new = write.mT @ solved[-1]
        state = new if state is None else state + new
    return leading(torch.cat(solved, 2), 2, length)
