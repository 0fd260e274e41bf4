"""Softmax: scaled dot product attention."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.given import explain
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import blocks

BLOCK = 256  # rows at a time where the entries themselves are needed


class Softmax(Matrix):
    """``M[i, j] = softmax_j(factor * query[i] . key[j] + bias[i, j])`` over the keys that row i may see.

    O(L^2 (E + W)) time; memory O(L) where PyTorch's fused kernels apply. A row that may see no key is zero, in the
    gradient too. Rows sum to one where a key is seen. Vaswani et al., arXiv 1706.03762, equation 1.
    """

    query: Tensor = axes("B|1 H L_out E")
    key: Tensor = axes("B|1 H L_in E")
    mask: Tensor | None = axes("B|1 L_in", torch.bool, default=None)  # True = a key that may be seen
    bias: Tensor | None = axes("B|1 H|1 L_out L_in", default=None)  # added to the scores
    factor: float | None = static(default=None)  # on the scores; None: 1 / sqrt(E)
    causal: bool = static(default=False)  # row i sees columns j <= i; the last row all, where there are more columns
    segments: Tensor | None = axes(
        "B|1 L", torch.int64, default=None
    )  # of a square matrix: rows see columns of their number

    properties: ClassVar = frozenset({"row_stochastic"})
    dense_below: ClassVar = 512

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        factor: float | None = None,
        causal: bool = False,
        segments: Tensor | None = None,
    ) -> None:
        # What a frozen dataclass does, less the fields left at their defaults: attention is made in every forward.
        write = object.__setattr__
        write(self, "query", query)
        write(self, "key", key)
        if mask is not None:
            write(self, "mask", mask)
        if bias is not None:
            write(self, "bias", bias)
        if factor is not None:
            write(self, "factor", factor)
        if causal is not False:  # what is no bool is for check() to refuse
            write(self, "causal", causal)
        if segments is not None:
            write(self, "segments", segments)

    def _check(self, sizes: dict[str, int]) -> None:
        if self.causal and sizes["L_out"] > sizes["L_in"]:
            raise ValueError(
                f"{type(self).__name__}: causal=True needs at least as many keys as queries, got "
                f"{sizes['L_in']} and {sizes['L_out']}"
            )

    @property
    def shape(self) -> Shape:
        batch = self.query.shape[0]
        for tensor in (self.key, self.mask, self.bias, self.segments):
            if batch == 1 and tensor is not None:
                batch = tensor.shape[0]
        return (batch, self.query.shape[1], self.query.shape[2], self.key.shape[2])

    def _allowed(self, start: int, stop: int) -> Tensor | None:
        """Which keys the rows from start to stop may see, broadcast to (B, 1, rows, L_in); None: all."""
        allowed = None if self.mask is None else self.mask[:, None, None, :]
        if self.causal:
            more = self.key.shape[2] - self.query.shape[2]
            rows = torch.arange(start + more, stop + more, device=self.key.device).unsqueeze(1)
            past = torch.arange(self.key.shape[2], device=self.key.device) <= rows
            allowed = past[None, None] if allowed is None else allowed & past
        if self.segments is not None:
            own = self.segments[:, start:stop].unsqueeze(-1) == self.segments.unsqueeze(-2)
            allowed = own.unsqueeze(1) if allowed is None else allowed & own.unsqueeze(1)
        return allowed

    def _dense_is_faster(self, width: int) -> bool:
        # The fused kernel of the CPU pads queries and keys to the width of the values; up to here that takes longer.
        padded = self.query.shape[3] < width and self.query.device.type == "cpu"
        return padded and self.key.shape[2] <= self.dense_below

    def matmul(self, values: Tensor) -> Tensor:
        try:
            key = self.key
            if (
                values.shape == key.shape
                and self.mask is self.bias is self.factor is self.segments is None
                and not self.causal
                and values.dtype is key.dtype
            ):
                return scaled_dot_product_attention(self.query, key, values)
        except Exception as error:
            explain(self, error, Matrix.matmul, (values,), {})
            raise
        return super().matmul(values)

    def _matmul(self, values: Tensor) -> Tensor:
        batch, heads, rows, columns = self.shape
        samples, wide, _, width = values.shape
        if heads == 1 and wide > 1:  # one matrix for all heads: more columns for it
            values = values.transpose(1, 2).reshape(samples, 1, columns, wide * width)
        samples = samples if batch == 1 else batch
        query, key, values = (
            t.expand(samples, heads, -1, -1) for t in (self.query, self.key, values.to(self.query.dtype))
        )
        size, columns_wide = query.shape[3], values.shape[3]
        factor = size**-0.5 if self.factor is None else self.factor
        if size != columns_wide <= 128 and size <= 128 and query.device.type == "cpu":
            # The fused kernel of the CPU needs one width for all; zeros change no score.
            query, key, values = (F.pad(t, (0, max(size, columns_wide) - t.shape[3])) for t in (query, key, values))
        if self.mask is self.bias is self.segments is None and not (self.causal and rows != columns):
            mixed = scaled_dot_product_attention(query, key, values, is_causal=self.causal, scale=factor)
        else:
            # A row without any key would be 0 / 0: open it and put the zero there afterwards.
            allowed, bias, seen = self._allowed(0, rows), self.bias, None
            if allowed is not None:
                seen = allowed.any(-1, keepdim=True)
                allowed = allowed | ~seen
                bias = allowed if bias is None else torch.where(allowed, bias, -torch.inf)
            assert bias is not None
            mixed = scaled_dot_product_attention(
                query, key, values, attn_mask=bias.expand(samples, heads, rows, columns), scale=factor
            )
            if seen is not None:
                mixed = mixed.masked_fill(~seen, 0)
        mixed = mixed[..., :columns_wide]
        if heads == 1 and wide > 1:
            mixed = mixed.squeeze(1).unflatten(-1, (wide, width)).transpose(1, 2)
        return mixed

    def _rows(self, start: int, stop: int) -> Tensor:
        """The entries of some rows, from the definition, in at least float32."""
        exact = working_dtype(self.query)
        factor = self.query.shape[3] ** -0.5 if self.factor is None else self.factor
        with full_precision(self.query.device):
            scores = factor * (self.query[:, :, start:stop].to(exact) @ self.key.to(exact).mT)
            if self.bias is not None:
                scores = scores + self.bias[:, :, start:stop]
            allowed = self._allowed(start, stop)
            if allowed is None and self.bias is None:
                return scores.softmax(-1)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, -torch.inf)
            blind = (scores == -torch.inf).all(-1, keepdim=True)  # a bias may hide every key as well
            return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)

    def _rmatmul(self, values: Tensor) -> Tensor:
        rows = self.shape[2]
        exact = working_dtype(self.query)
        mixed = values.new_zeros((), dtype=exact)
        for start, stop in blocks(rows, BLOCK):
            mixed = mixed + self._rows(start, stop).mT @ values[:, :, start:stop].to(exact)
        return mixed

    def diagonal(self) -> Tensor:
        size = min(self.shape[2:])
        parts = [self._rows(start, stop).diagonal(start, -2, -1) for start, stop in blocks(size, BLOCK)]
        return torch.cat(parts, -1).to(self.query.dtype)

    def to_dense(self) -> Tensor:
        return self._rows(0, self.query.shape[2]).to(self.query.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        pairs = batch * heads * rows * columns
        size = self.query.shape[3]
        # Two products and about five operations a score (scale, maximum, subtract, exponent, sum).
        moved = batch * heads * (rows + columns) * (size + width)
        return Cost(pairs * (2 * size + 2 * width + 5), self.query.itemsize * moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        query, key = torch.randn(2, batch, heads, length, 4, dtype=dtype)
        return cls(query, key)
