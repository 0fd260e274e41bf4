"""Delta rule: linear attention that replaces what a key held, and does not add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.algebra import Product
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.semiseparable import Semiseparable
from matmix.matrices.unit_lower_inverse import UnitLowerInverse
from matmix.mixers.base import Grid
from matmix.mixers.fast_weights import FastWeights, FastWeightTokens, from_fla, outer
from matmix.mixers.registry import register
from matmix.ops.masks import forgetting
from matmix.ops.precision import working_dtype


@register(
    "delta_rule",
    matrix="Semiseparable UnitLowerInverse Diagonal per head",
    cost="O(L D E + L D^2)",
    source="fla-org/flash-linear-attention",
    paper="2406.06484, equations 4 to 8",
    smallest={"heads": 2, "d_conv": 3},
)
class DeltaRule(FastWeights):
    """``M = tril(Q K^T) (I + strictly_lower(diag(b) K K^T))^-1 diag(b)``, Q scaled by 1 / sqrt(E).

    As a recurrence ``S_i = S_{i-1} + b_i k_i (v_i - S_{i-1}^T k_i)^T``: each token corrects what its key reads by the
    share ``b_i = sigmoid(W_b x_i)``. Queries and keys are of length one. The recurrence is that of the published
    reference, the layer around it that of flash-linear-attention's ``DeltaNet``: a short convolution with SiLU, no
    biases, an RMS norm of every head.

    Args:
        heads: number of heads H.
        expand_k: width of all queries over the model width.
        expand_v: width of all values over the model width.
        out_gate: a SiLU gate.
        d_conv: taps of the causal convolution over queries, keys and values; None leaves SiLU alone.
        negative_eigenvalues: shares from 0 to 2, so that a key can turn what it reads round (arXiv 2411.12537).
        eps: added to the mean square of a head.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        out_gate: bool = False,
        d_conv: int | None = 4,
        negative_eigenvalues: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(dim, grid, heads, expand_k, expand_v, out_gate, d_conv, eps, extra=heads)
        self.negative_eigenvalues = negative_eigenvalues

    def _split(self, mixed: Tensor, *rest: Any) -> FastWeightTokens:
        return super()._split(F.silu(mixed) if self.conv1d is None else mixed, *rest)

    def _features(self, query: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        # Kept in float32: the solve below multiplies the rounding of keys.
        query, key = (t.to(working_dtype(t)) for t in (query, key))
        return tuple(t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (query, key))  # type: ignore[return-value]

    def _strength(self, tokens: FastWeightTokens) -> Tensor:
        """``b``, ``(B, H, L)``."""
        assert tokens.control is not None
        strength = torch.sigmoid(tokens.control.to(tokens.key.dtype)).mT
        return 2 * strength if self.negative_eigenvalues else strength

    def _factors(
        self, tokens: FastWeightTokens, segments: Tensor | None = None
    ) -> tuple[Semiseparable, UnitLowerInverse, Diagonal]:
        strength, key = self._strength(tokens), tokens.key
        read = Semiseparable(tokens.query, key, forgetting(key.new_zeros(1, *key.shape[1:3]), segments))
        solve = UnitLowerInverse(strength.unsqueeze(-1) * key, key, segments=segments)
        return read, solve, Diagonal(strength)

    def _mixing(self, tokens: FastWeightTokens, mask: Tensor | None, segments: Tensor | None) -> Matrix:
        return Product(self._factors(tokens, segments))

    def _remember(self, tokens: FastWeightTokens, mask: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        read, solve, strength = self._factors(tokens)
        values = tokens.values.to(tokens.key.dtype)
        if memory is not None:  # what keys already hold is taken off what they are to hold
            values = values - tokens.key @ memory.mT
        new = solve.matmul(strength.matmul(values))
        mixed, written = read.matmul(new), new.mT @ tokens.key
        return (mixed, written) if memory is None else (mixed + tokens.query @ memory.mT, memory + written)

    def _update(self, memory: Tensor, tokens: FastWeightTokens) -> Tensor:
        key, dtype = tokens.key.to(memory.dtype), memory.dtype
        held = (memory @ key.mT).mT
        strength = self._strength(tokens).unsqueeze(-1).to(dtype)
        return memory + outer(strength * (tokens.values.to(dtype) - held), key)

    published: ClassVar[dict[str, Callable[..., Any]]] = {
        "fla-org/flash-linear-attention": from_fla("g_proj", "b_proj")
    }
