"""ChunkDiagonal: one matrix for every chunk of the sequence, and nothing between chunks."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.dense import Dense
from matmix.ops.cost import Cost
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import first_entries


class ChunkDiagonal(Matrix):
    """``M = diag(A_1, ..., A_K)`` cut to L tokens: the cost of the chunks, O(L C (E + W)) for attention in chunks of C.

    The K matrices of a sample are neighbours in the batch of ``inner``. What a last chunk has beyond the sequence is
    no part of the matrix.
    """

    inner: Matrix  # (B K, H, C, C)
    chunks: int = static(least=1)  # K
    length: int = static(least=1)  # L, above (K - 1) C and at most K C

    def _check(self, sizes: dict[str, int]) -> None:
        batch, _, rows, columns = self.inner.shape
        if rows != columns or self.chunks < 1 or batch % self.chunks:
            raise ValueError(f"ChunkDiagonal: inner must be (B * {self.chunks}, H, C, C), got {self.inner.shape}")
        if not (self.chunks - 1) * rows < self.length <= self.chunks * rows:
            raise ValueError(
                f"ChunkDiagonal: length must be above {(self.chunks - 1) * rows} and at most {self.chunks * rows}, got "
                f"{self.length}"
            )

    @property
    def shape(self) -> Shape:
        batch, heads = self.inner.shape[:2]
        return (batch // self.chunks, heads, self.length, self.length)

    def _apply(self, name: str, values: Tensor) -> Tensor:
        batch, heads = self.shape[:2]
        size = self.inner.shape[2]
        shared = share(values, batch, heads)
        tokens = F.pad(shared, (0, 0, 0, self.chunks * size - self.length)).unflatten(2, (self.chunks, size))
        mixed = getattr(self.inner, name)(tokens.expand(batch, -1, -1, -1, -1).transpose(1, 2).flatten(0, 1))
        mixed = mixed.unflatten(0, (batch, self.chunks)).transpose(1, 2).flatten(2, 3)
        return unshare(first_entries(mixed, 2, self.length), values, batch, heads)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply("matmul", values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply("rmatmul", values)

    @property
    def mT(self) -> ChunkDiagonal:
        return ChunkDiagonal(self.inner.mT, self.chunks, self.length)

    def diagonal(self) -> Tensor:
        entries = self.inner.diagonal().unflatten(0, (self.shape[0], self.chunks))
        return entries.transpose(1, 2).flatten(2).narrow(2, 0, self.length)

    def to_dense(self) -> Tensor:
        blocks = self.inner.to_dense().unflatten(0, (self.shape[0], self.chunks)).transpose(1, 2)
        one = torch.eye(self.chunks, dtype=blocks.dtype, device=blocks.device)
        whole = blocks.unsqueeze(4) * one[:, None, :, None]  # (B, H, K, C, K, C)
        return whole.flatten(4).flatten(2, 3)[:, :, : self.length, : self.length]

    def cost(self, width: int) -> Cost:
        return self.inner.cost(width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        size = min(length, 4)
        chunks = -(-length // size)
        return cls(Dense(torch.randn(batch * chunks, heads, size, size, dtype=dtype)), chunks, length)
