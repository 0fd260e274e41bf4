"""Laplace, and SquaredReLU: attention whose weights are a function of each score by itself."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import blocks, joint_batch

BLOCK = 256  # rows at a time
MEAN, DEVIATION = 0.707107, 0.282095  # sqrt(1/2) and sqrt(1/(4 pi)), to the digits of the published code


class Laplace(Matrix):
    """``M[i, j] = Phi((query[i] . key[j] / n_i + bias[i, j] - 0.707107) / 0.282095)``, 0 for keys that are not seen.

    Phi is the distribution function of the standard normal, n_i the number of keys that row i may see (at least 1).
    An even S between 0 and 1, close to a squared ReLU; rows do not sum to one. O(L^2 (E + W)). Mega, arXiv 2209.10655,
    section 3.2.
    """

    query: Tensor = axes("B|1 H L_out E")
    key: Tensor = axes("B|1 H L_in E")
    mask: Tensor | None = axes("B|1 L_in", torch.bool, default=None)  # True = a key that may be seen
    bias: Tensor | None = axes("B|1 H|1 L_out L_in", default=None)  # added to the scores
    causal: bool = static(default=False)  # row i sees columns j <= i; the last row all, where there are more columns

    def _check(self, sizes: dict[str, int]) -> None:
        if self.causal and sizes["L_out"] > sizes["L_in"]:
            raise ValueError(
                f"{type(self).__name__}: causal=True needs at least as many keys as queries, got "
                f"{sizes['L_in']} and {sizes['L_out']}"
            )

    @property
    def shape(self) -> Shape:
        batch = joint_batch((self.query, self.key, self.mask, self.bias))
        return (batch, self.query.shape[1], self.query.shape[2], self.key.shape[2])

    def _seen(self) -> Tensor:
        """Which keys a row may see, ``(B or 1, 1, L_out or 1, L_in)``."""
        columns = torch.arange(self.key.shape[2], device=self.key.device)
        seen = columns[None, None, None] >= 0
        if self.causal:
            rows = columns[len(columns) - self.query.shape[2] :]
            seen = columns <= rows.unsqueeze(1)
            seen = seen[None, None]
        return seen if self.mask is None else seen & self.mask[:, None, None]

    def _rows(self, start: int, stop: int, seen: Tensor) -> Tensor:
        """The entries of some rows."""
        dtype = working_dtype(self.query, self.key)
        seen = seen[:, :, start:stop] if seen.shape[2] > 1 else seen
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        scores = (self.query[:, :, start:stop].to(dtype) / count) @ self.key.to(dtype).mT
        if self.bias is not None:
            scores = scores + self.bias[:, :, start:stop]
        return self.weigh(scores).masked_fill(~seen, 0)

    @staticmethod
    def weigh(scores: Tensor) -> Tensor:
        """The weights of scores, one by one."""
        # erfc and not 1 + erf: the tail keeps its digits.
        return 0.5 * torch.erfc((MEAN - scores) / (DEVIATION * math.sqrt(2)))

    def _matmul(self, values: Tensor) -> Tensor:
        batch, heads, rows, _ = self.shape
        seen, shared = self._seen(), share(values, batch, heads)
        mixed = []
        with full_precision(values.device):
            for start, stop in blocks(rows, BLOCK):
                entries = self._rows(start, stop, seen)
                mixed.append(entries @ shared.to(entries.dtype))
        return unshare(torch.cat(mixed, 2), values, batch, heads)

    def _rmatmul(self, values: Tensor) -> Tensor:
        batch, heads, rows, _ = self.shape
        seen, shared = self._seen(), share(values, batch, heads)
        mixed = values.new_zeros((), dtype=working_dtype(values, self.query))
        with full_precision(values.device):
            for start, stop in blocks(rows, BLOCK):
                entries = self._rows(start, stop, seen)
                mixed = mixed + entries.mT @ shared[:, :, start:stop].to(entries.dtype)
        return unshare(mixed, values, batch, heads)

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.query, self.key)
        seen = self._seen()
        with full_precision(self.query.device):
            scores = torch.einsum("bhie,bhje->bhij", self.query.to(dtype), self.key.to(dtype))
            scores = scores / seen.sum(-1, keepdim=True).clamp(min=1)
            scores = scores if self.bias is None else scores + self.bias
            return torch.where(seen, self.weigh(scores), 0).to(self.query.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        pairs, size = batch * heads * rows * columns, self.query.shape[3]
        moved = batch * heads * (rows + columns) * (size + width)
        return Cost(pairs * (2 * size + 2 * width + 5), self.query.itemsize * moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        query, key = torch.randn(2, batch, heads, length, 4, dtype=dtype) / 4
        mask = torch.rand(batch, length) < 0.8
        return cls(query, key, mask, torch.rand(1, heads, length, length, dtype=dtype) + 0.3)


class SquaredReLU(Laplace):
    """``M[i, j] = max(0, query[i] . key[j] / n_i + bias[i, j])^2``, otherwise as :class:`Laplace`.

    What Laplace's curve approximates, and bounds (So et al., arXiv 2109.08668; Mega, section 3.2).
    """

    @staticmethod
    def weigh(scores: Tensor) -> Tensor:
        return scores.relu().square()
