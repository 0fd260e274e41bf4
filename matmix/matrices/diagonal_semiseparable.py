"""Semiseparable with a decay for every channel and state: the matrix of Mamba's S6 and of S4D-Real."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.matrices.semiseparable import decays
from matmix.ops.cost import Cost
from matmix.ops.diagonal_scan import diagonal_scan
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.scan import share, unshare
from matmix.ops.sizes import joint_batch


class DiagonalSemiseparable(Matrix):
    """``M[i, j] = sum_n C_i[n] exp(a_{j+1}[n] + ... + a_i[n]) B_j[n] s_j`` for ``i >= j``, 0 above (Mamba, 2312.00752).

    Every block on or below the diagonal has rank N at most. The decays may be given as rates (the same at every token)
    times a clock, as in Mamba, where ``a = A dt``: then the L x N of them a head are never held at once. The product
    is a scan: O(L N W) operations a head, all element by element, against the matrix products of ``Semiseparable``,
    which knows one decay a head only.
    """

    outputs: Tensor = axes("B|1 G L N")  # C; G divides H
    inputs: Tensor = axes("B|1 G L N")  # B
    log_decay: Tensor = axes("B|1 H L|1 N")  # a <= 0
    clock: Tensor | None = axes("B|1 H L", default=None)  # factors of a, at least 0; None is 1
    step: Tensor | None = axes("B|1 H L", default=None)  # s; None is 1
    chunk: int | None = static(least=1, default=None)  # Q; None chooses by shape. No result depends on it.

    properties: ClassVar = frozenset({"causal", "semiseparable"})

    def _check(self, sizes: dict[str, int]) -> None:
        if sizes["H"] % sizes["G"]:
            raise ValueError(
                f"{type(self).__name__}: the G = {sizes['G']} groups must divide the H = {sizes['H']} heads"
            )

    @property
    def shape(self) -> Shape:
        batch = joint_batch((self.outputs, self.inputs, self.log_decay, self.clock, self.step))
        length = self.outputs.shape[2]
        return (batch, self.log_decay.shape[1], length, length)

    @property
    def order(self) -> int:
        """N: no block on one side of the diagonal has a higher rank."""
        return self.outputs.shape[3]

    def _matmul(self, values: Tensor) -> Tensor:
        batch, heads = self.shape[:2]
        shared = share(values, batch, heads)
        factors = (self.outputs, self.inputs, self.log_decay, self.clock, self.step)
        mixed, _ = diagonal_scan(shared, *factors, chunk=self.chunk)
        return unshare(mixed, values, batch, heads)

    def _rmatmul(self, values: Tensor) -> Tensor:
        # From the last token to the first, B and C change places; between two tokens the later one's decay applies,
        # which in this order is that of the token before.
        def late(factor: Tensor) -> Tensor:
            return torch.cat((torch.zeros_like(factor[:, :, :1]), factor.flip(2)[:, :, :-1]), 2)

        batch, heads = self.shape[:2]
        log_decay = late(self.log_decay) if self.log_decay.shape[2] == self.shape[2] else self.log_decay
        clock = None if self.clock is None else late(self.clock)
        turned = share(values, batch, heads).flip(2)
        mixed, _ = diagonal_scan(turned, self.inputs.flip(2), self.outputs.flip(2), log_decay, clock, chunk=self.chunk)
        mixed = mixed.flip(2) if self.step is None else mixed.flip(2) * self.step.unsqueeze(-1)
        return unshare(mixed, values, batch, heads)

    def diagonal(self) -> Tensor:
        heads = self.log_decay.shape[1]
        entries = (self.outputs * self.inputs).sum(-1)
        entries = entries.repeat_interleave(heads // entries.shape[1], 1)
        return entries if self.step is None else entries * self.step

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.outputs, self.inputs, self.log_decay)
        heads, length = self.log_decay.shape[1], self.outputs.shape[2]
        with full_precision(self.outputs.device):
            outputs, inputs = (
                t.to(dtype).repeat_interleave(heads // t.shape[1], 1) for t in (self.outputs, self.inputs)
            )
            logs = self.log_decay.to(dtype).expand(-1, -1, length, -1)
            logs = logs if self.clock is None else logs * self.clock.unsqueeze(-1)
            entries = torch.zeros((), dtype=dtype, device=outputs.device)
            for n in range(self.order):  # one state after the other: L x L x N numbers would be too many
                scores = outputs[..., n].unsqueeze(-1) * inputs[..., n].unsqueeze(-2)
                entries = entries + decays(logs[..., n]) * scores
            entries = entries if self.step is None else entries * self.step.unsqueeze(-2)
        return entries.to(self.outputs.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        numbers = batch * heads * length * self.order
        factors = sum(t.numel() * t.itemsize for t in self.tensors())
        # Decay, write, update and read of every state at every token (the exponential counted as one).
        moved = self.outputs.itemsize * 2 * batch * heads * length * width
        return Cost(numbers * (2 + 5 * width), factors + moved)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length, states = math.prod(grid), 4
        groups = heads // 2 if heads % 2 == 0 else heads
        # Rates from 0.1 to 3 a unit of time, another set for every head.
        rates = torch.logspace(-1, 0.5, heads * states, dtype=dtype).view(states, heads).mT.unflatten(0, (1, heads, 1))
        step = F.softplus(torch.randn(batch, heads, length, dtype=dtype))
        return cls(
            torch.randn(batch, groups, length, states, dtype=dtype) / 2,
            torch.randn(batch, groups, length, states, dtype=dtype) / 2,
            -rates,
            step,
            step,
            chunk=4 if length <= 64 else None,  # several chunks even where the length is small
        )
