"""Semiseparable with a decay for every state that all columns of a head share: gated linear attention."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.matrices.semiseparable import decays
from matmix.ops.channel_scan import gated_product
from matmix.ops.cost import Cost
from matmix.ops.precision import working_dtype
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import joint_batch


class GatedSemiseparable(Matrix):
    """``M[i, j] = sum_n C_i[n] exp(a_{j+1}[n] + ... + a_i[n]) B_j[n]`` for ``i >= j``, 0 above.

    The matrix of gated linear attention (arXiv 2312.06635, equation 4). Every block on or below the diagonal has rank
    N at most. It is a ``DiagonalSemiseparable`` for wide heads: chunks of Q tokens are matrix products,
    O(L (Q (N + W) + N W)) operations a head, and what the backward keeps is O(L (Q + N)) numbers and not the
    O(L N W) of a scan's states.
    """

    outputs: Tensor = axes("B|1 H L N")  # C
    inputs: Tensor = axes("B|1 H L N")  # B
    log_decay: Tensor = axes("B|1 H L N")  # a <= 0; -inf forgets
    chunk: int | None = static(least=1, default=None)  # Q; None chooses. No result depends on it.

    properties: ClassVar = frozenset({"causal", "semiseparable"})

    @property
    def shape(self) -> Shape:
        _, heads, length, _ = self.outputs.shape
        return (joint_batch((self.outputs, self.inputs, self.log_decay)), heads, length, length)

    @property
    def order(self) -> int:
        """N: no block on one side of the diagonal has a higher rank."""
        return self.outputs.shape[3]

    def _apply(self, values: Tensor, transposed: bool) -> Tensor:
        batch, heads = self.shape[:2]
        shared = share(values, batch, heads)
        factors = (self.outputs, self.inputs, self.log_decay)
        mixed = gated_product(shared, factors, chunk=self.chunk, transposed=transposed)
        return unshare(mixed, values, batch, heads)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=False)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=True)

    def diagonal(self) -> Tensor:
        return (self.outputs * self.inputs).sum(-1)

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.outputs, self.inputs, self.log_decay)
        entries = torch.zeros((), dtype=dtype, device=self.device)
        for n in range(self.order):  # one state after the other: L x L x N numbers would be too many
            scores = self.outputs[..., n].to(dtype).unsqueeze(-1) * self.inputs[..., n].to(dtype).unsqueeze(-2)
            entries = entries + decays(self.log_decay[..., n].to(dtype)) * scores
        return entries.to(self.outputs.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        size, states = min(length, 32 if self.chunk is None else self.chunk), self.order
        flow = 4 * states * width if length > size else 0
        token = 2 * size * (states + width) + 12 * states + flow
        moved = sum(t.numel() for t in self.tensors()) + 2 * batch * heads * length * width
        return Cost(batch * heads * length * token, self.outputs.itemsize * moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        outputs, inputs, raw = torch.randn(3, batch, heads, length, 4, dtype=dtype)
        # Rates from 0.1 to 10 a token: some states forget at once, some hardly at all.
        rate = torch.logspace(-1, 1, 4, dtype=dtype)
        return cls(outputs / 2, inputs / 2, -rate * F.softplus(raw), chunk=8 if length <= 64 else None)
