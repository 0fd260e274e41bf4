"""Selection: every row takes one column; max pooling, segments, vector quantisation."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost


class Selection(Matrix):
    """``(M v)[i] = v[index[i]]``, and zero where ``index[i] = -1``; O(L W) per head by gather and scatter."""

    index: Tensor = axes("B|1 H L_out", torch.int64)  # from -1 to columns - 1
    columns: int = static(least=0)
    dtype: torch.dtype = static(default=torch.float32)

    @classmethod
    def of(cls, index: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Self:
        """A checked selection (reads the index: not for a compiled forward)."""
        cls(index, columns, dtype).check()
        return cls(index.long(), columns, dtype)

    dense_below: ClassVar = 32

    def _check(self, sizes: dict[str, int]) -> None:
        if self.index.is_meta or not self.index.numel():
            return
        if not (int(self.index.min()) >= -1 and int(self.index.max()) < self.columns):
            raise ValueError(
                f"Selection: index must lie in -1 .. {self.columns - 1}, got {int(self.index.min())} .. "
                f"{int(self.index.max())}"
            )

    @property
    def shape(self) -> Shape:
        batch, heads, rows = self.index.shape
        return (batch, heads, rows, self.columns)

    def _places(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where every entry of the values comes from or goes to, and which rows are zero."""
        batch, heads, _, width = values.shape
        index = self.index.unsqueeze(-1)
        batch = batch if index.shape[0] == 1 else index.shape[0]
        return index.clamp(min=0).expand(batch, heads, -1, width), index < 0

    def _matmul(self, values: Tensor) -> Tensor:
        places, empty = self._places(values)
        return values.expand(places.shape[0], -1, -1, -1).gather(2, places).masked_fill(empty, 0)

    def _rmatmul(self, values: Tensor) -> Tensor:
        places, empty = self._places(values)
        given = values.masked_fill(empty, 0)
        start = given.new_zeros(*places.shape[:2], self.columns, given.shape[3])
        return start.scatter_add(2, places, given)

    def diagonal(self) -> Tensor:
        size = min(self.shape[2:])
        here = torch.arange(size, device=self.index.device)
        return (self.index[:, :, :size] == here).to(self.dtype)

    def to_dense(self) -> Tensor:
        columns = torch.arange(self.columns, device=self.index.device)
        return (self.index.unsqueeze(-1) == columns).to(self.dtype)

    def cost(self, width: int) -> Cost:
        size = self.index.numel()
        return Cost(0, size * (self.index.itemsize + 2 * width * self.dtype.itemsize))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(torch.randint(-1, length, (batch, heads, length)), length, dtype)
