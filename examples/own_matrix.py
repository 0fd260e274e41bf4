"""A matrix class of your own: a Householder reflection, O(L W) a head instead of O(L^2 W).

    python examples/own_matrix.py

Five methods make a class. The base turns it into a frozen dataclass and a pytree, gives it transpose, sums, products
and stacks, and `check_matrix` holds its fast product to its written-out entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from matmix.matrices import Identity, Matrix
from matmix.ops.cost import Cost
from matmix.testing import check_matrix


class Reflection(Matrix):
    """``I - 2 v v^T / |v|^2``: the mirror at the plane across v."""

    properties = frozenset({"symmetric"})  # each word is a law

    normal: Tensor  # v, (B or 1, H, L)

    @property
    def shape(self):
        return (*self.normal.shape, self.normal.shape[2])

    def _unit(self) -> Tensor:
        return self.normal / self.normal.norm(dim=-1, keepdim=True)

    def _matmul(self, values: Tensor) -> Tensor:  # the algorithm: two passes over the values
        v = self._unit().unsqueeze(-1)
        return values - 2 * v * (v * values).sum(2, keepdim=True)

    def to_dense(self) -> Tensor:  # the mathematics: entry by entry, not by way of _matmul
        v = self._unit()
        return torch.eye(v.shape[2], dtype=v.dtype, device=v.device) - 2 * v.unsqueeze(-1) * v.unsqueeze(-2)

    def cost(self, width: int) -> Cost:
        size = self.normal.numel() * width
        return Cost(4 * size, self.normal.itemsize * (self.normal.numel() + 3 * size))

    @classmethod
    def example(cls, grid, heads=2, batch=2, dtype=torch.float64):  # with this it is under every law
        return cls(torch.randn(batch, heads, math.prod(grid), dtype=dtype))


if __name__ == "__main__":
    check_matrix(Reflection)

    mirror = Reflection.example((6,), heads=1, batch=1)
    values = torch.randn(1, 1, 6, 3, dtype=torch.float64)
    twice = mirror @ (mirror @ values)
    print(f"{mirror} twice is the identity: {torch.allclose(twice, values)}")

    half = (mirror + Identity.example((6,), heads=1, batch=1)).scale(0.5)  # the projector onto the plane, still lazy
    print(f"{half} projects: {torch.allclose(half @ (half @ values), half @ values)}")
    print(f"a product with 64 columns takes {mirror.cost(64).flops} operations; written out, {2 * 6 * 6 * 64}")
