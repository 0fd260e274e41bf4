"""BlockDiagonal: one matrix for every block of the token axis, and nothing between blocks."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.dense import Dense
from matmix.ops.cost import Cost
from matmix.ops.scan import share, unshare


class BlockDiagonal(Matrix):
    """``M = diag(A_1, ..., A_K)`` with blocks of any shape: the cost of the blocks.

    Mixers on the transposed axes have it: with the tokens times their channels as axis, the block of a token mixes its
    channels. The K matrices of a sample are neighbours in the batch of ``inner``; an ``inner`` of batch 1 is every
    block's. (``ChunkDiagonal`` has square blocks, the last of which may stick out.)
    """

    inner: Matrix  # (B K or 1, H, C_out, C_in)
    blocks: int = static(least=1)  # K

    def _check(self, sizes: dict[str, int]) -> None:
        batch = self.inner.shape[0]
        if self.blocks < 1 or (batch != 1 and batch % self.blocks):
            raise ValueError(f"BlockDiagonal: inner must have a batch of 1 or of B * {self.blocks}, got {batch}")

    @property
    def shape(self) -> Shape:
        batch, heads, rows, columns = self.inner.shape
        return (1 if batch == 1 else batch // self.blocks, heads, self.blocks * rows, self.blocks * columns)

    def _apply(self, name: str, values: Tensor) -> Tensor:
        batch, heads = self.shape[:2]
        shared = self.inner.shape[0] == 1
        wide = values if shared else share(values, batch, heads).expand(batch, -1, -1, -1)
        tokens = wide.unflatten(2, (self.blocks, values.shape[2] // self.blocks)).transpose(1, 2)
        mixed = getattr(self.inner, name)(tokens.flatten(0, 1))
        mixed = mixed.unflatten(0, (wide.shape[0], self.blocks)).transpose(1, 2).flatten(2, 3)
        return mixed if shared else unshare(mixed, values, batch, heads)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply("matmul", values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply("rmatmul", values)

    @property
    def mT(self) -> BlockDiagonal:
        return BlockDiagonal(self.inner.mT, self.blocks)

    def _blocks(self, entries: Tensor) -> Tensor:
        """What belongs to the blocks, ``(B K or 1, H, ...)``, as ``(B or 1, H, K, ...)``."""
        if self.inner.shape[0] == 1:
            return entries.unsqueeze(2).expand(-1, -1, self.blocks, *entries.shape[2:])
        return entries.unflatten(0, (self.shape[0], self.blocks)).transpose(1, 2)

    def to_dense(self) -> Tensor:
        blocks = self._blocks(self.inner.to_dense())
        one = torch.eye(self.blocks, dtype=blocks.dtype, device=blocks.device)
        whole = blocks.unsqueeze(4) * one[:, None, :, None]  # (B, H, K, C_out, K, C_in)
        return whole.flatten(4).flatten(2, 3)

    def cost(self, width: int) -> Cost:
        return self.inner.cost(width * (self.blocks if self.inner.shape[0] == 1 else 1))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        blocks = math.prod(grid)
        return cls(Dense(torch.randn(batch * blocks, heads, 2, 3, dtype=dtype)), blocks)
