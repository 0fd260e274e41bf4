"""MaxPool: every token takes the largest of its neighbours, channel by channel."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes, check_window
from matmix.matrices.selection import Selection
from matmix.ops.cost import Cost
from matmix.ops.layout import image_of


class MaxPool(Matrix):
    """Row p of head h takes the token of the window about p where ``tokens[:, :, h]`` is largest; a Selection, O(L W).

    Places are looked for when the matrix is asked for them: the largest numbers alone are found faster. A row whose
    window holds no real token takes a padded one.
    """

    tokens: Tensor = axes("B L H")
    grid: tuple[int, ...] = static(least=1)
    window: tuple[int, ...] = static(least=1)  # odd
    mask: Tensor | None = axes("B L", torch.bool, default=None)  # True = a real token

    def _check(self, sizes: dict[str, int]) -> None:
        check_window(type(self).__name__, self.grid, self.window, sizes)

    @property
    def shape(self) -> Shape:
        batch, length, heads = self.tokens.shape
        return (batch, heads, length, length)

    def selection(self) -> Selection:
        """The same matrix with its places written out."""
        tokens = self.tokens.detach()
        if self.mask is not None:
            tokens = tokens.masked_fill(~self.mask.unsqueeze(-1), -torch.inf)
        window = self.window if len(self.window) == 2 else (1, *self.window)
        pad = (window[0] // 2, window[1] // 2)
        _, index = F.max_pool2d(image_of(tokens, self.grid), window, 1, pad, return_indices=True)
        return Selection(index.flatten(2), tokens.shape[1], tokens.dtype)

    def _matmul(self, values: Tensor) -> Tensor:
        return self.selection().matmul(values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.selection().rmatmul(values)

    def diagonal(self) -> Tensor:
        return self.selection().diagonal()

    def to_dense(self) -> Tensor:
        return self.selection().to_dense()

    def cost(self, width: int) -> Cost:
        size = self.tokens.numel()
        look = Cost(size * math.prod(self.window), self.dtype.itemsize * size)
        return look + Cost(0, size * (8 + 2 * width * self.dtype.itemsize))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        mask = torch.rand(batch, length) < 0.8
        return cls(torch.randn(batch, length, heads, dtype=dtype), tuple(grid), (3, 5)[: len(grid)], mask)
