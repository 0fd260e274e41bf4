"""UnitLowerInverse: (I + a strictly lower low-rank triangle)^-1, the solve inside the delta rule."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.delta_rule import CHUNK, unit_lower_product
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import joint_batch


class UnitLowerInverse(Matrix):
    """``M = (I + strictly_lower(left right^T))^-1``: what is left of every value after all earlier ones had their say.

    ``u_i = v_i - sum_{j<i} (left_i . right_j) u_j`` (delta rule, arXiv 2406.06484, section 3.2), by chunks of Q tokens
    in WY form: each solves its own Q x Q triangle, all at once, and then corrects for the N x W state that the chunks
    before it leave, one chunk after the other. O(L (Q N + Q W + N W)) a head, no step of it is a loop over tokens.
    The inverse is semiseparable as its triangle is, with one more for the diagonal of ones.
    """

    left: Tensor = axes("B|1 H L N")
    right: Tensor = axes("B|1 H L N")
    chunk: int = static(least=1, default=CHUNK)  # Q. No result depends on it.
    segments: Tensor | None = axes("B|1 L", torch.int64, default=None)  # values have no say in those of another number

    properties: ClassVar = frozenset({"causal", "semiseparable"})

    @property
    def shape(self) -> Shape:
        _, heads, length, _ = self.left.shape
        return (joint_batch((self.left, self.right, self.segments)), heads, length, length)

    @property
    def order(self) -> int:
        """N + 1: no block on one side of the diagonal, which counts, has a higher rank."""
        return self.left.shape[3] + 1

    def _matmul(self, values: Tensor) -> Tensor:
        return self._solve(self.left, self.right, values, flip=False)

    def _rmatmul(self, values: Tensor) -> Tensor:
        # Read from the end, the transposed triangle is lower again, and its factors change places.
        return self._solve(self.right, self.left, values, flip=True)

    def _solve(self, left: Tensor, right: Tensor, values: Tensor, flip: bool) -> Tensor:
        batch, heads = self.shape[:2]
        shared = share(values, batch, heads)
        solved = unit_lower_product(left, right, shared, chunk=self.chunk, segments=self.segments, flip=flip)
        return unshare(solved, values, batch, heads)

    def diagonal(self) -> Tensor:
        return self.left.new_ones(()).expand(self.shape[:3])

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.left, self.right)
        with full_precision(self.left.device):
            below = torch.einsum("bhin,bhjn->bhij", self.left.to(dtype), self.right.to(dtype)).tril(-1)
            if self.segments is not None:
                other = self.segments.unsqueeze(-1) != self.segments.unsqueeze(-2)
                below = below.masked_fill(other.unsqueeze(1), 0)
            one = torch.eye(below.shape[-1], dtype=dtype, device=below.device)
            return torch.linalg.solve_triangular(below + one, one, upper=False).to(self.left.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        size, states = min(length, self.chunk), self.left.shape[3]
        flow = size * states + 4 * states * width if length > size else 0
        moved = self.left.numel() + self.right.numel() + 2 * batch * heads * length * width
        return Cost(batch * heads * length * (2 * size * states + size * width + flow), self.left.itemsize * moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        keys = torch.nn.functional.normalize(torch.randn(batch, heads, length, 4, dtype=dtype), dim=-1)
        strength = torch.rand(batch, heads, length, 1, dtype=dtype)
        return cls(strength * keys, keys, chunk=4 if length <= 64 else CHUNK)
