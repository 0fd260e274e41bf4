"""Semiseparable with one decay a head: the matrix of Mamba-2, of gated linear attention, of retention."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops import scan
from matmix.ops.cost import Cost
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import joint_batch
from matmix.ops.ssd import triangle_product


class Semiseparable(Matrix):
    """``M[i, j] = C_i . B_j exp(a_{j+1} + ... + a_i) s_j`` for ``i >= j``, 0 above (Mamba-2, 2405.21060, eq. 6 and 16).

    Every block on or below the diagonal has rank N at most. O(L (Q N G/H + Q W + N W)) a head for chunks of Q tokens,
    memory O(L Q): linear in L, the L x L matrix is never formed.
    """

    outputs: Tensor = axes("B|1 G L N")  # C; G divides H
    inputs: Tensor = axes("B|1 G L N")  # B
    log_decay: Tensor = axes("B|1 H L")  # a <= 0; -inf forgets
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
        _, heads, length = self.log_decay.shape
        batch = joint_batch((self.log_decay, self.outputs, self.inputs, self.step))
        return (batch, heads, length, length)

    @property
    def order(self) -> int:
        """N: no block on one side of the diagonal has a higher rank."""
        return self.outputs.shape[3]

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply(values, transposed=False)

    def _rmatmul(self, values: Tensor) -> Tensor:
        # The transposed blocks are the same factors read the other way: one product, where the vjp takes two.
        return self._apply(values, transposed=True)

    def _apply(self, values: Tensor, transposed: bool) -> Tensor:
        batch, heads = self.shape[:2]
        shared = scan.share(values, batch, heads)
        factors = (self.outputs, self.inputs, self.log_decay, self.step)
        mixed = triangle_product(shared, factors, chunk=self.chunk, transposed=transposed)
        return scan.unshare(mixed, values, batch, heads)

    def diagonal(self) -> Tensor:
        heads = self.log_decay.shape[1]
        entries = (self.outputs * self.inputs).sum(-1)
        entries = entries.repeat_interleave(heads // entries.shape[1], 1)
        return entries if self.step is None else entries * self.step

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.outputs, self.inputs, self.log_decay)
        heads, groups = self.log_decay.shape[1], self.outputs.shape[1]
        with full_precision(self.outputs.device):
            scores = torch.einsum("bgin,bgjn->bgij", self.outputs.to(dtype), self.inputs.to(dtype))
            entries = decays(self.log_decay.to(dtype)) * scores.repeat_interleave(heads // groups, 1)
            entries = entries if self.step is None else entries * self.step.unsqueeze(-2)
        return entries.to(self.outputs.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        return scan_cost(
            batch, heads, self.outputs.shape[1], length, self.order, width, self.chunk, self.outputs.itemsize
        )

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length, states = math.prod(grid), 4
        groups = heads // 2 if heads % 2 == 0 else heads
        # Rates from 0.05 to 3 a step: some heads forget at once, some hardly at all.
        rate = torch.logspace(-1.3, 0.5, heads, dtype=dtype).view(1, heads, 1)
        step = F.softplus(torch.randn(batch, heads, length, dtype=dtype))
        return cls(
            torch.randn(batch, groups, length, states, dtype=dtype) / 2,
            torch.randn(batch, groups, length, states, dtype=dtype) / 2,
            -rate * step,
            step,
            chunk=4 if length <= 64 else None,  # several chunks even where the length is small
        )


def decays(log_decay: Tensor) -> Tensor:
    """``exp(a_{j+1} + ... + a_i)`` for i >= j, else 0: ``(B, H, L) -> (B, H, L, L)``, each sum added up by itself."""
    length = log_decay.shape[-1]
    below = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril(-1)
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, length).masked_fill(~below, 0)
    return steps.cumsum(-2).masked_fill(below.mT, -torch.inf).exp()


def scan_cost(
    batch: int, heads: int, groups: int, length: int, states: int, width: int, chunk: int | None, itemsize: int
) -> Cost:
    """Operations of the chunked product, and its factors, values and results moved once."""
    size = scan.chunk_size(length, states, width, chunk)
    chunks = -(-length // size)
    table = 2 * size * states * groups / heads + 3 * size + 2 * size * width
    flow = (4 + 2 * min(chunks, scan.CARRY) / size) * states * width if chunks > 1 else 0
    moved = 2 * groups * states + 2 * heads + 2 * heads * width
    return Cost(int(batch * heads * length * (table + flow)), itemsize * batch * length * moved)
