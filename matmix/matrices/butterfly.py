"""Butterfly: log2 L sparse factors, the pattern of the fast Fourier transform with free 2 x 2 blocks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import first_entries, known


class Butterfly(Matrix):
    """``M = S^T F_{k-1} ... F_1 F_0 S``: factor s mixes the tokens whose positions differ in bit s, by 2 x 2 blocks.

    O(L log L W) per head. There are n = 2^k positions; a sequence of another length takes the leading ones (S puts
    zeros on the rest), so M is the leading L x L block of the n x n butterfly.
    Dao et al., arXiv 1903.05895, section 3; between two positions there is one path through the factors, so an
    entry of a butterfly is a product of k numbers.
    """

    blocks: Tensor = axes("B|1 H k n/2 2 2")  # [s, pair, bit of the row, bit of the column]
    length: int = static(least=1)  # L <= n = 2^k

    @classmethod
    def depth(cls, length: int) -> int:
        """k, the number of factors that ``length`` tokens need."""
        return (length - 1).bit_length()

    @classmethod
    def of(cls, blocks: Tensor, length: int) -> Self:
        """A checked butterfly over ``length`` tokens."""
        return cls(blocks, length).check()

    def _check(self, sizes: dict[str, int]) -> None:
        if self.length < 1:
            raise ValueError(f"Butterfly: length must be at least 1, got {self.length}")
        k = self.depth(self.length)
        if tuple(self.blocks.shape[2:4]) != (k, (1 << k) // 2):
            raise ValueError(
                f"Butterfly: blocks over {self.length} tokens must be (B or 1, H, {k}, {(1 << k) // 2}, 2, 2), "
                f"got {tuple(self.blocks.shape)}"
            )

    @property
    def shape(self) -> Shape:
        return (self.blocks.shape[0], self.blocks.shape[1], self.length, self.length)

    def _factor(self, s: int, values: Tensor, transposed: bool) -> Tensor:
        """One sparse factor on values (B, H, n, W)."""
        step, size = 1 << s, values.shape[2]
        first, second = values.unflatten(2, (size // (2 * step), 2, step)).unbind(3)
        block = self.blocks[:, :, s].unflatten(2, (size // (2 * step), step)).unsqueeze(4)
        to_first, to_second = (0, 1), (1, 0)
        across, back = (to_second, to_first) if transposed else (to_first, to_second)
        first, second = (
            block[..., 0, 0] * first + block[..., across[0], across[1]] * second,
            block[..., back[0], back[1]] * first + block[..., 1, 1] * second,
        )
        return torch.stack((first, second), 3).flatten(2, 4)

    def _round(self, start: int, stop: int, values: Tensor, transposed: bool) -> Tensor:
        """Factors from start to stop at once, on values ``(B, H, n, W)``: they join positions that differ in these
        bits only, as dense blocks of ``2^(stop - start)``, which are the factors applied to the identity."""
        size, step = 1 << (stop - start), 1 << start
        apart = (values.shape[2] // (size * step), size, step)
        block = torch.eye(size, dtype=self.blocks.dtype, device=self.blocks.device).unsqueeze(1)
        block = block.expand(*self.blocks.shape[:2], apart[0], size, step, size).flatten(2, 4)
        for s in range(start, stop):
            block = self._factor(s, block, False)
        block = block.unflatten(2, apart).transpose(3, 4)
        mixed = (block.mT if transposed else block) @ values.unflatten(2, apart).transpose(3, 4)
        return mixed.transpose(3, 4).flatten(2, 4)

    def _apply(self, values: Tensor, transposed: bool) -> Tensor:
        batch, heads, depth = self.blocks.shape[:3]
        positions = 1 << depth
        if depth == 0:  # a single token, and no factor that would spread the values over the batch
            return values if batch == 1 else values.expand(batch, -1, -1, -1)
        fill = positions - self.length
        mixed = share(F.pad(values, (0, 0, 0, fill)) if fill else values, batch, heads)
        # Rounds of up to five factors, if the values are wide enough to pay for the making of the blocks.
        width = mixed.shape[3]
        most = min(5, int(width).bit_length() - 2) if known(width) else 3
        if most < 2:
            for s in reversed(range(depth)) if transposed else range(depth):
                mixed = self._factor(s, mixed, transposed)
        else:
            count = -(-depth // most)
            borders = [depth * i // count for i in range(count + 1)]
            rounds = list(pairwise(borders))
            for start, stop in reversed(rounds) if transposed else rounds:
                mixed = self._round(start, stop, mixed, transposed)
        return unshare(first_entries(mixed, 2, self.length), values, batch, heads)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=False)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=True)

    def _entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``M[rows, columns]``, elementwise over two index tensors of one shape."""
        entries = self.blocks.new_ones(*self.blocks.shape[:2], *rows.shape)
        for s in range(self.blocks.shape[2]):
            # Before factor s the bits below s are already those of the row, the others still those of the column.
            pair = ((columns >> (s + 1)) << s) + (rows & ((1 << s) - 1))
            entries = entries * self.blocks[:, :, s, pair, (rows >> s) & 1, (columns >> s) & 1]
        return entries

    def diagonal(self) -> Tensor:
        here = torch.arange(self.length, device=self.blocks.device)
        return self._entries(here, here)

    def to_dense(self) -> Tensor:
        here = torch.arange(self.length, device=self.blocks.device)
        square = (self.length, self.length)
        return self._entries(here.unsqueeze(1).expand(square), here.expand(square))

    def cost(self, width: int) -> Cost:
        batch, heads, depth = self.blocks.shape[:3]
        size = batch * heads * (1 << depth) * width
        moved = 2 * size * depth + 2 * batch * heads * self.length * width
        return Cost(3 * size * depth, self.blocks.itemsize * (self.blocks.numel() + moved))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        k = cls.depth(length)
        return cls(torch.randn(batch, heads, k, (1 << k) // 2, 2, 2, dtype=dtype), length)
