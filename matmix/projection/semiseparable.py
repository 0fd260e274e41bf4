"""Semiseparable and quasiseparable matrices of order n: state spaces by singular values, then descent.

A causal matrix of order n runs n states, ``x_k = A_k x_{k-1} + B_k u_k``, ``y_k = C_k x_k``. Let ``R_k`` (n x k + 1)
be what the states hold of the inputs, ``x_k = R_k u``: then ``R_k = [A_k R_{k-1}, B_k]``, and the rows from k on of the
columns up to k, the Hankel block of token k, are ``O_k R_k``. The states may be turned so that the rows of every R_k
are orthonormal; then the best read-out is ``C_k = M[k, :k + 1] R_k^T``, and all that is sought is the spaces of R_k,
each within the one before and one more input.

1. *Start*: from the first token to the last, keep the n directions of ``[R_{k-1}, 1]`` that the Hankel block writes to
   most, by its singular values (the one-pass reduction of a time-varying system). What is lost is the sum of squares
   of the singular values that were cut off.
2. *Descent*: alternately from the last token to the first the best C_k and A_{k+1} for given R, and from the first to
   the last the best A_k and B_k for given O. Each of these is the exact minimum in its block, so that the error never
   grows.

B batch, L tokens, n order; ``n_k = min(n, k + 1, L - k)`` is the largest rank that a Hankel block can need.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.general_quasiseparable import GeneralQuasiseparable
from matmix.matrices.general_semiseparable import GeneralSemiseparable
from matmix.projection.base import Grid, ranks, register_projection, square, whole

SWEEPS = 50  # at most; random matrices of 48 to 200 tokens need about 10
CONVERGED = 1e-3  # the part of the squared error that a last sweep may still take off
EXACT = 1e-14  # the part of the squared norm below which the squared error is rounding

States = tuple[list[Tensor], list[Tensor]]
"""For every token ``[A_k, B_k]`` (B, n_k, n_{k-1} + 1), rows orthonormal, and ``M[k:, :k + 1] R_k^T`` (B, L - k, n_k),
of which the first row is C_k."""


def _ranks(length: int, order: int) -> list[int]:
    return [min(order, k + 1, length - k) for k in range(length)]


def _start(entries: Tensor, order: int) -> States:
    """The states of each Hankel block's leading singular values."""
    updates, blocks = [], []
    known = entries[:, :, :0]  # M[k:, :k] R_{k-1}^T
    for k, rank in enumerate(_ranks(entries.shape[1], order)):
        known = torch.cat((known, entries[:, k:, k : k + 1]), 2)
        tall = known.shape[1] > known.shape[2]
        update = torch.linalg.svd(torch.linalg.qr(known).R if tall else known, full_matrices=False).Vh[:, :rank]
        updates.append(update)
        blocks.append(known @ update.mT)
        known = blocks[-1][:, 1:]
    return updates, blocks


def _sweep(entries: Tensor, blocks: list[Tensor]) -> States:
    """The best O for the given R, then the best R for that O."""
    length = entries.shape[1]
    # From the last token: the columns of O_k lie among e_k and those of O_{k+1}; the best span what the block has.
    seen: list[Tensor] = [blocks[-1].new_ones(entries.shape[0], 1, 1)]
    for k in range(length - 2, -1, -1):
        later = seen[-1]
        turned, _ = torch.linalg.qr(torch.cat((blocks[k][:, :1], later.mT @ blocks[k][:, 1:]), 1))
        seen.append(torch.cat((turned[:, :1], later @ turned[:, 1:]), 1))
    updates, fresh = [], []
    known = entries[:, :, :0]
    for k, basis in enumerate(reversed(seen)):
        known = torch.cat((known, entries[:, k:, k : k + 1]), 2)
        update = torch.linalg.qr((basis.mT @ known).mT).Q.mT
        updates.append(update)
        fresh.append(known @ update.mT)
        known = fresh[-1][:, 1:]
    return updates, fresh


def _loss(size: Tensor, blocks: list[Tensor]) -> Tensor:
    """The squared error for each matrix: what no read-out sees, (B,)."""
    return size - sum((block[:, 0].square().sum(1) for block in blocks), torch.zeros_like(size))


def nearest_causal(entries: Tensor, order: int, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and inputs (B, L, n) and transitions (B, L, n, n) of a causal matrix of order n near each (B, L, L).

    What stands above the diagonal is not read. Each matrix is swept until it has converged by itself, so that no
    result depends on what else is in the batch.
    """
    entries = entries.double().tril()
    batch, length, _ = entries.shape
    outputs, inputs = entries.new_zeros(2, batch, length, order)
    transitions = entries.new_zeros(batch, length, order, order)
    if batch == 0:
        return outputs, inputs, transitions
    size = entries.square().sum((1, 2))
    updates, blocks = _start(entries, order)
    loss = _loss(size, blocks)
    todo = (loss > EXACT * size).nonzero().squeeze(1)
    for _ in range(sweeps):
        if not len(todo):
            break
        new_updates, new_blocks = _sweep(entries[todo], [block[todo] for block in blocks])
        for old, new in zip((*updates, *blocks), (*new_updates, *new_blocks), strict=True):
            old[todo] = new
        now = _loss(size[todo], new_blocks)
        going = (loss[todo] - now > CONVERGED * now) & (now > EXACT * size[todo])
        loss[todo] = now
        todo = todo[going]
    before = 0
    for k, (update, block) in enumerate(zip(updates, blocks, strict=True)):
        rank = update.shape[1]
        outputs[:, k, :rank] = block[:, 0]
        inputs[:, k, :rank] = update[:, :, before]
        transitions[:, k, :rank, :before] = update[:, :, :before]
        before = rank
    return outputs, inputs, transitions


def _dimension(length: int, order: int) -> int:
    """Free numbers of the causal matrices of order n: generators less the choices of states."""
    ranks = _ranks(length, order)
    return sum(own * before + 2 * own - own**2 for own, before in zip(ranks, [0, *ranks], strict=False))


def _sweeps(sweeps: object) -> int:
    return whole("sweeps", sweeps, 10**6, least=0)


@register_projection(
    "semiseparable",
    parameters="about 2 L order",
    cost="O(L (order^3 + order^2 W))",
    exact=False,
    size="order",
    sizes=ranks,
)
def semiseparable(entries: Tensor, grid: Grid, order: int, sweeps: int = SWEEPS) -> tuple[Matrix, int]:
    """Causal matrices of linear recurrences with ``order`` states: blocks on or below the diagonal of that rank.

    Promised: members come back, to rounding; the start's error is at most ``sqrt(L)`` times the least one there is,
    since the singular values that it cuts from any one Hankel block bound every member's error from below, and its own
    is their sum in squares; no sweep makes it larger. The descent ends when a sweep takes less than 0.1 % off the
    squared error. Not promised: the global minimum. On random matrices of 48 tokens the result was 0.5 to 0.6 % above
    the best of 20 long descents by L-BFGS over all generators (orders 1, 2 and 4, in both directions).

    Args:
        entries: ``(B or 1, H, L, L)``.
        grid: not read; tokens are taken in their order.
        order: number of states, up to (L + 1) / 2, at which every causal matrix is a member.
        sweeps: at most this many descents over the tokens; 0 is the start alone.
    """
    length = square(entries, "semiseparable")
    order, sweeps = whole("order", order, (length + 1) // 2), _sweeps(sweeps)
    found = nearest_causal(entries.flatten(0, 1), order, sweeps)
    parts = (part.to(entries.dtype).unflatten(0, entries.shape[:2]) for part in found)
    return GeneralSemiseparable(*parts), _dimension(length, order)


@register_projection(
    "quasiseparable",
    parameters="about 4 L order + L",
    cost="O(L (order^3 + order^2 W))",
    exact=False,
    size="order",
    sizes=ranks,
)
def quasiseparable(entries: Tensor, grid: Grid, order: int, sweeps: int = SWEEPS) -> tuple[Matrix, int]:
    """Linear recurrences of ``order`` states in both directions around a free diagonal, as Hydra has them.

    Both triangles, without the diagonal, are semiseparable problems of L - 1 tokens each, and their errors add up in
    squares: what ``semiseparable`` promises holds here.

    Args:
        entries: ``(B or 1, H, L, L)``.
        grid: not read; tokens are taken in their order.
        order: number of states of each direction, up to L / 2, at which every matrix is a member.
        sweeps: at most this many descents over the tokens; 0 is the start alone.
    """
    length = square(entries, "quasiseparable")
    order, sweeps = whole("order", order, max(1, length // 2)), _sweeps(sweeps)
    triangles = torch.stack((entries, entries.mT))[..., 1:, :-1]  # (2, B, H, L - 1, L - 1)
    found = nearest_causal(triangles.flatten(0, 2), order, sweeps)
    parts = [
        # The last token of a triangle is not read: zeros.
        F.pad(part.to(entries.dtype), (0, 0) * (part.dim() - 2) + (0, 1)).unflatten(0, triangles.shape[:3])
        for part in found
    ]
    lower, upper = (GeneralSemiseparable(*(part[side] for part in parts)) for side in range(2))
    skip = entries.diagonal(dim1=2, dim2=3)
    return GeneralQuasiseparable(lower, upper, skip), 2 * _dimension(length - 1, order) + length
