"""Semiseparable with a free N x N transition at every token: the matrix of any linear recurrence of N states."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import joint_batch


class GeneralSemiseparable(Matrix):
    """``M[i, j] = C_i A_i A_{i-1} ... A_{j+1} B_j`` for ``i >= j``, 0 above (sequentially semiseparable).

    Every causal matrix whose blocks on or below the diagonal have rank N at most is one of these; ``Semiseparable``
    (one decay a head) and ``DiagonalSemiseparable`` (one a state) are those with transitions of a special form. The
    product is the recurrence ``S_i = A_i S_{i-1} + B_i v_i^T, y_i = S_i^T C_i`` in about sqrt(L) chunks at once:
    2 sqrt(L) steps instead of L, O(L (N^3 + N^2 W)) operations a head.
    """

    outputs: Tensor = axes("B|1 H L N")  # C
    inputs: Tensor = axes("B|1 H L N")  # B
    transitions: Tensor = axes("B|1 H L N N")  # A; that of the first token is not read

    properties: ClassVar = frozenset({"causal", "semiseparable"})

    @property
    def shape(self) -> Shape:
        _, heads, length, _ = self.outputs.shape
        return (joint_batch((self.outputs, self.inputs, self.transitions)), heads, length, length)

    @property
    def order(self) -> int:
        """N: no block on one side of the diagonal has a higher rank."""
        return self.outputs.shape[3]

    def _matmul(self, values: Tensor) -> Tensor:
        return _recurrence(values, self.shape, self.outputs, self.inputs, self.transitions)

    def _rmatmul(self, values: Tensor) -> Tensor:
        # From the last token to the first, B and C change places; between two tokens the later one's transition
        # applies, transposed, which in this order is that of the token before.
        turned = self.transitions.mT.flip(2)
        late = torch.cat((torch.zeros_like(turned[:, :, :1]), turned[:, :, :-1]), 2)
        return _recurrence(values.flip(2), self.shape, self.inputs.flip(2), self.outputs.flip(2), late).flip(2)

    def diagonal(self) -> Tensor:
        return (self.outputs * self.inputs).sum(-1)

    def to_dense(self) -> Tensor:
        batch, _, length, _ = self.shape
        dtype = working_dtype(self.outputs, self.inputs, self.transitions)
        with full_precision(self.device):
            outputs, inputs, transitions = (
                part.to(dtype).expand(batch, *part.shape[1:]) for part in (self.outputs, self.inputs, self.transitions)
            )
            reach = inputs[:, :, :1].mT  # (B, H, N, i + 1): A_i ... A_{j+1} B_j for every j up to i
            rows = [outputs[:, :, :1] @ reach]
            for i in range(1, length):
                reach = torch.cat((transitions[:, :, i] @ reach, inputs[:, :, i, :, None]), 3)
                rows.append(outputs[:, :, i : i + 1] @ reach)
            entries = torch.cat([F.pad(row, (0, length - row.shape[3])) for row in rows], 2)
        return entries.to(self.outputs.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        states = self.order
        # Transitions joined over a chunk, the state carried on, read and written, and what came from earlier chunks.
        token = 2 * states**3 + 2 * states**2 + (2 * states**2 + 6 * states) * width
        moved = sum(part.numel() for part in self.tensors()) + 2 * batch * heads * length * width
        return Cost(batch * heads * length * token, self.outputs.itemsize * moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length, states = math.prod(grid), 3
        outputs, inputs = torch.randn(2, batch, heads, length, states, dtype=dtype)
        # Rotations that shrink: nothing fades at once, nothing grows. One set of transitions for all samples.
        rotations, _ = torch.linalg.qr(torch.randn(1, heads, length, states, states, dtype=torch.float64))
        return cls(outputs / 2, inputs / 2, (0.9 * rotations).to(dtype))


def _recurrence(values: Tensor, shape: Shape, outputs: Tensor, inputs: Tensor, transitions: Tensor) -> Tensor:
    """``S_i = A_i S_{i-1} + B_i v_i^T, y_i = S_i^T C_i`` from S = 0: all chunks from 0, then what each hands on."""
    batch, heads, length, _ = shape
    dtype = working_dtype(values, outputs, inputs, transitions)
    shared = share(values, batch, heads)
    size = math.isqrt(max(length - 1, 0)) + 1
    fill = -length % size

    def cut(part: Tensor) -> Tensor:  # (B, H, L, ...) -> (B, H, Z, Q, ...); the tail adds nothing
        tail = (0, 0) * (part.dim() - 3)
        return F.pad(part.to(dtype), (*tail, 0, fill)).unflatten(2, ((length + fill) // size, size))

    with full_precision(values.device):
        reads, writes, steps, tokens = (cut(part) for part in (outputs, inputs, transitions, shared))
        state = writes[..., 0, :, None] * tokens[..., 0, None, :]  # (B, H, Z, N, W)
        passed = steps[..., 0, :, :]  # (B, H, Z, N, N): from the border of the chunk to this token
        mixed, carried = [reads[..., :1, :] @ state], [reads[..., :1, :] @ passed]
        for q in range(1, size):
            state = steps[..., q, :, :] @ state + writes[..., q, :, None] * tokens[..., q, None, :]
            passed = steps[..., q, :, :] @ passed
            mixed.append(reads[..., q : q + 1, :] @ state)
            carried.append(reads[..., q : q + 1, :] @ passed)
        start = torch.zeros_like(state[:, :, 0])
        starts = [start]
        for z in range(state.shape[2] - 1):
            start = passed[:, :, z] @ start + state[:, :, z]
            starts.append(start)
        joined = torch.cat(mixed, 3) + torch.cat(carried, 3) @ torch.stack(starts, 2)
        return unshare(joined.flatten(2, 3)[:, :, :length], values, batch, heads)
