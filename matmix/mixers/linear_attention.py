"""Linear attention: attention whose scores are products of positive features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import Product
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.low_rank import LowRank
from matmix.matrices.semiseparable import Semiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, merge_heads
from matmix.mixers.registry import register
from matmix.ops.activations import untransformed
from matmix.ops.effective import tensor_of
from matmix.ops.linear import linear
from matmix.ops.masks import forgetting
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.ssd import ssd_scan

TINY = 1e-6  # no normaliser is smaller: rows that see no token stay zero


@register(
    "linear_attention",
    matrix="diag(1 / normaliser) LowRank per head; causal: Semiseparable without decay",
    cost="O(L D E + L D^2)",
    source="idiap/fast-transformers",
    paper="2006.16236, equations 4 and 9",
    smallest={"head_dim": 4},
)
class LinearAttention(Mixer):
    """``y_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j)`` with ``phi = elu + 1``, linear in L.

    The matrix is low rank with rows scaled to sum to one; looking back only, it is semiseparable with a decay of 1,
    and token by token a state of E x E numbers a head.

    Args:
        head_dim: width E of a head; there are ``dim // head_dim`` heads, at least one.
        causal: token i sees tokens up to i.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(self, dim: int, grid: Grid | None = None, *, head_dim: int = 32, causal: bool = False) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, recurrent=True, aligned=True, packed=True)
        super().__init__(dim, grid)
        self.head_dim, self.heads, self.causal = head_dim, max(1, dim // head_dim), causal
        inner = self.heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, dim, bias=False)

    def _features(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values, ``(B, H, L, E)``; masked keys have no features."""
        parts = linear(self.qkv, x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        query, key, values = (part.transpose(1, 2) for part in parts)
        query, key = positive(query), positive(key)
        return query, key if mask is None else key.masked_fill(~mask[:, None, :, None], 0), values

    def project(self, x: Tensor, context: Context) -> Projected:
        query, key, values = self._features(x, context.mask)
        matrix = normalised(query, key, causal=self.causal, segments=context.segments)
        return Projected(matrix, ranged(values), values.dtype)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        matrix, values, rest = self.project(x, context)
        with full_precision(x.device):  # autocast would take the sums back to float16
            return matrix.matmul(values), rest

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed).to(rest))

    # ------------------------------------------------------------------ token by token: sums over the past

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        zeros = tensor_of(self.qkv, self).new_zeros(batch, self.heads, self.head_dim, self.head_dim)
        zeros = zeros.to(working_dtype(zeros))
        return zeros, zeros[..., 0]

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        query, key, given = self._features(x, mask)
        query, key, values = ranged(query), ranged(key), ranged(given)
        past, seen = self.init_state(x.shape[0]) if state is None else state
        start = None if state is None else past.mT
        with full_precision(x.device):
            mixed, memory = ssd_scan(values, query, key, key.new_zeros(1, *key.shape[1:3]), initial=start)
            sums = key.to(seen.dtype).cumsum(2) + seen.unsqueeze(2)
            share = (query.to(seen.dtype) * sums).sum(-1, keepdim=True).clamp(min=TINY)
            mixed = mixed / share
        return self.merge(mixed, given.dtype), (memory.mT, sums[:, :, -1])

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        query, key, value = self._features(x.unsqueeze(1), None)
        past, seen = state
        exact = past.dtype
        with full_precision(x.device):
            past = past + key.mT.to(exact) * value.to(exact)
            seen = seen + key.squeeze(2).to(exact)
            share = (query.to(exact) * seen.unsqueeze(2)).sum(-1, keepdim=True).clamp(min=TINY)
            mixed = query.to(exact) @ past / share
        return self.merge(mixed, value.dtype).squeeze(1), (past, seen)


def normalised(query: Tensor, key: Tensor, *, causal: bool = False, segments: Tensor | None = None) -> Product:
    """``M[i, j] = q_i . k_j / sum_j q_i . k_j`` of features that are not negative, ``(B, H, L, E)`` each.

    Args:
        query, key: features; those of tokens that nobody may see are zero.
        causal: row i sees columns j <= i.
        segments: as a mixer takes them; with them it is causal.
    """
    query, key, exact = ranged(query), ranged(key), working_dtype(query)
    with full_precision(query.device):
        if segments is not None:  # sums that start anew: differences of long ones would cost digits
            ones = query.new_ones(*query.shape[:3], 1, dtype=exact)
            decay = forgetting(key.new_zeros(1, *key.shape[1:3]), segments)
            total = Semiseparable(query.to(exact), key.to(exact), decay).matmul(ones).squeeze(-1)
        elif causal:
            total = (query.to(exact) * key.to(exact).cumsum(2)).sum(-1)
        else:
            total = (query.to(exact) @ key.to(exact).sum(2).unsqueeze(-1)).squeeze(-1)
        share = total.clamp(min=TINY).reciprocal().to(query.dtype)
    if not causal:
        return Product((Diagonal(share), LowRank(query, key)))
    decay = forgetting(key.new_zeros(1, *key.shape[1:3]), segments)
    return Product((Diagonal(share), Semiseparable(query, key, decay)))


def ranged(x: Tensor) -> Tensor:
    """Float16 as float32: sums over tokens and 1 / TINY pass its largest number, 65,504."""
    return x.float() if x.dtype == torch.float16 else x


def positive(x: Tensor) -> Tensor:
    """``elu(x) + 1``, as exp(x) below zero and x + 1 above: precise where it is small, and the faster to compute."""
    return _Positive.apply(x) if untransformed() else x.clamp(max=0).exp() + x.relu()


class _Positive(torch.autograd.Function):
    """``positive``, whose slope is its own value up to 1: nothing is kept but the features, and heads lie in a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        features = x.clamp(max=0).exp_().add_(x.relu())
        ctx.save_for_backward(features)
        ctx.save_for_forward(features)
        return features

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0].clamp(max=1)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0] * ctx.saved_tensors[0].clamp(max=1)
