"""Monarch: two block-diagonal factors with a transposition of the token grid between them."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.scan import share, unshare

WORTH = 1 << 17  # numbers in all samples of a head from which a call a head costs less than copies of all heads


class Monarch(Matrix):
    """Tokens on an m x n grid: mix within every row by its own block, then within every column by its own.

    ``M[(d, c), (a, b)] = left[c, d, a] right[a, c, b]``; O(L (m + n) W) per head, O(L^1.5 W) at m = n. Any L = m n.
    Dao et al., Monarch, arXiv 2204.00595, equation 1, with both outer permutations absorbed.
    """

    left: Tensor = axes("B|1 H n m m")  # a block a column
    right: Tensor = axes("B|1 H m n n")  # a block a row

    @classmethod
    def split(cls, length: int) -> tuple[int, int]:
        """``(m, n)`` with ``m n = length``, as near to a square as the length allows (a prime has one row)."""
        rows = max(m for m in range(1, math.isqrt(length) + 1) if length % m == 0)
        return rows, length // rows

    properties: ClassVar = frozenset({"monarch"})
    dense_below: ClassVar = 8

    @property
    def grid(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[3], self.left.shape[2]

    @property
    def shape(self) -> Shape:
        left, right = self.left.shape, self.right.shape
        return (right[0] if left[0] == 1 else left[0], left[1], left[2] * left[3], right[2] * right[3])

    def _matmul(self, values: Tensor) -> Tensor:
        m, n = self.left.shape[3], self.left.shape[2]
        batch, heads = self.shape[:2]
        if batch == 1 and heads == values.shape[1] and _by_head_is_faster(values):
            return self._by_head(values)
        wide = share(values, batch, heads)  # samples that share the matrix side by side: fewer, wider products
        rows = self.right @ wide.unflatten(2, (m, n))
        mixed = (self.left @ rows.transpose(2, 3)).transpose(2, 3).flatten(2, 3)
        return unshare(mixed, values, batch, heads)

    def _by_head(self, values: Tensor) -> Tensor:
        """One head after the other: the transposition between its factors is a view then, and all of it in cache."""
        m, n = self.left.shape[3], self.left.shape[2]
        batch, width = values.shape[0], values.shape[3]
        mixed = []
        # Heads are taken from, and put to, where they lie in tokens (B, L, H*W): gradients too are stacked that way.
        images = values.transpose(1, 2).unflatten(1, (m, n)).unbind(3)
        for left, right, image in zip(self.left.squeeze(0), self.right.squeeze(0), images, strict=True):
            wide = image.permute(1, 2, 0, 3).flatten(2)  # (m, n, B W)
            wide = torch.bmm(left, torch.bmm(right, wide).transpose(0, 1))  # (n, m, B W)
            mixed.append(wide.unflatten(-1, (batch, width)).permute(2, 1, 0, 3))
        return torch.stack(mixed, 3).flatten(1, 2).transpose(1, 2)

    def _rmatmul(self, values: Tensor) -> Tensor:
        m, n = self.left.shape[3], self.left.shape[2]
        batch, heads = self.shape[:2]
        columns = self.left.mT @ share(values, batch, heads).unflatten(2, (m, n)).transpose(2, 3)
        return unshare((self.right.mT @ columns.transpose(2, 3)).flatten(2, 3), values, batch, heads)

    def diagonal(self) -> Tensor:
        # d = a and c = b: left[c, a, a] right[a, c, c].
        own = self.left.diagonal(dim1=-2, dim2=-1).mT * self.right.diagonal(dim1=-2, dim2=-1)
        return own.flatten(2)

    def to_dense(self) -> Tensor:
        return torch.einsum("xhcda,xhacb->xhdcab", *self._joined()).reshape(self.shape)

    def _joined(self) -> tuple[Tensor, Tensor]:
        batch = self.shape[0]
        return self.left.expand(batch, -1, -1, -1, -1), self.right.expand(batch, -1, -1, -1, -1)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        m, n = self.left.shape[3], self.left.shape[2]
        size = batch * heads * length * width
        blocks = self.left.numel() + self.right.numel()
        return Cost(2 * size * (m + n), self.left.itemsize * (blocks + 4 * size))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        m, n = cls.split(math.prod(grid))
        return cls(
            torch.randn(batch, heads, n, m, m, dtype=dtype) / m**0.5,
            torch.randn(1, heads, m, n, n, dtype=dtype) / n**0.5,
        )


def _by_head_is_faster(values: Tensor) -> bool:
    """Measured on the CPU; a compiler is spared the loop."""
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return False
    return values.shape[0] * values.shape[2] * values.shape[3] >= WORTH
