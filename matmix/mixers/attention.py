"""Attention: every token reads from every other as much as its query meets the other's key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.effective import tensor_of
from matmix.ops.linear import linear
from matmix.ops.masks import places
from matmix.ops.rotary import turn_pairs


def _joined(
    query: str, key: str, value: str, output: str
) -> Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]:
    """Queries, keys and values of three layers in one, and the output projection, each with a bias."""

    def ours(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds = ("weight", "bias")
        qkv = {f"qkv.{kind}": torch.cat([state[f"{name}.{kind}"] for name in (query, key, value)]) for kind in kinds}
        return qkv | {f"proj.{kind}": state[f"{output}.{kind}"] for kind in kinds}

    return ours


_from_tslib = _joined("query_projection", "key_projection", "value_projection", "out_projection")


@register(
    "attention",
    matrix="Softmax per head",
    cost="O(L^2 D + L D^2)",
    source="sail-sg/metaformer",
    paper="1706.03762, equation 1",
    smallest={"head_dim": 4},
)
class Attention(Mixer):
    """``y = W_o softmax(q k^T / sqrt(E)) v`` a head, by PyTorch's fused kernels (defaults as in CAFormer).

    There are ``dim // head_dim`` heads, at least one, unless ``heads`` says how many; where ``head_dim`` does not
    divide ``dim`` the inner width differs from it, as in the published code. Masked keys are seen by nobody. Unless
    causal or rotary no position enters: the outputs follow any permutation of the tokens.

    Args:
        head_dim: width E of a head.
        heads: number of heads, for an inner width of heads * head_dim that is not dim; None is dim // head_dim.
        qkv_bias: biases of queries, keys and values.
        proj_bias: bias of the output projection (PoolFormer's ablations have one).
        causal: token i sees tokens up to i; then the mixer also runs token by token on a cache of keys and values.
        rotary: neighbouring channels of queries and keys are turned as a pair by angles in proportion to the place of
            the token (rotary position embedding), so scores hang on the distance of two tokens. Padding counts as no
            place; an image is read row by row.
        dropout: in training, the chance of an entry of the matrix to be left out; the others grow by 1 / (1 - p), and
            the matrix that runs and is shown is the one that is left (drawn anew whenever it is asked for).
    """

    traits = Traits(data_dependent=True, mask="trim", packed=True)

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        head_dim: int = 32,
        heads: int | None = None,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        causal: bool = False,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, recurrent=True, aligned=True)
        super().__init__(dim, grid)
        heads = max(1, dim // head_dim) if heads is None else heads
        if rotary and head_dim % 2:
            raise ValueError(f"rotary turns pairs of channels and needs an even head_dim, got {head_dim}")
        self.head_dim, self.heads, self.causal, self.rotary, self.dropout = head_dim, heads, causal, rotary, dropout
        inner = self.heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim, bias=proj_bias)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values ``(B, H, L, E)`` of tokens ``(B, L, D)``, from one product."""
        # In thirds before heads: their gradients are then joined by one copy, not two.
        return tuple(split_heads(part, self.heads) for part in linear(self.qkv, x).chunk(3, -1))

    def project(self, x: Tensor, context: Context) -> Projected:
        query, key, values = self._heads(x)
        if self.rotary:
            place = places(x.shape[1], context.mask, context.segments, x.device)
            query, key = turn_pairs(query, place), turn_pairs(key, place)
        matrix = Softmax(query, key, context.mask, causal=self.causal, segments=context.segments)
        return Projected(self._thinned(matrix), values)

    def _thinned(self, matrix: Softmax) -> Matrix:
        if not (self.training and self.dropout):
            return matrix
        return Dense(F.dropout(matrix.to_dense(), self.dropout))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed))

    # ------------------------------------------------------------------ token by token: keys, values, who is real

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        empty = tensor_of(self.qkv, self).new_zeros(batch, self.heads, 0, self.head_dim)
        return empty, empty, torch.ones(batch, 0, dtype=torch.bool, device=empty.device)

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        query, key, values = self._heads(x)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if self.rotary:  # keys in the state are turned already
            place = places(x.shape[1], mask, None, x.device)
            place = place if state is None else place + state[2].sum(1, keepdim=True)
            query, key = turn_pairs(query, place), turn_pairs(key, place)
        if state is not None:
            keys, past, before = state
            key, values = torch.cat((keys.to(key.dtype), key), 2), torch.cat((past.to(values.dtype), values), 2)
            mask = real = torch.cat((before, real), 1)
        mixed = self._thinned(Softmax(query, key, mask, causal=True)).matmul(values)
        return self.merge(mixed, None), (key, values, real)

    published: ClassVar[dict[str, Any]] = {
        "sail-sg/metaformer": lambda module, state: state,
        "sail-sg/poolformer": lambda module, state: state,
        "lxchtan/PoNet": _joined("W_q", "W_k", "W_v", "ff"),
        "huggingface/transformers": _joined("self.query", "self.key", "self.value", "output.dense"),
        "thuml/Time-Series-Library": _from_tslib,
        "Thrillcrazyer/JustDense": _from_tslib,
    }
