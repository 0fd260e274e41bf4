"""Delta rule: linear attention that replaces what a key held, and does not add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.permutation import Permutation
from matmix.matrices.semiseparable import Semiseparable
from matmix.matrices.unit_lower_inverse import UnitLowerInverse
from matmix.mixers.base import Grid
from matmix.mixers.fast_weights import FastWeights, FastWeightTokens, from_fla, in_a_row, outer, repeated
from matmix.mixers.registry import register
from matmix.ops.masks import forgetting
from matmix.ops.precision import working_dtype


@register(
    "delta_rule",
    matrix="Semiseparable UnitLowerInverse Diagonal per head",
    cost="O(L D E + L D^2)",
    source="fla-org/flash-linear-attention",
    paper="2406.06484, equations 4 to 8; with householders, 2502.10297",
    smallest={"heads": 2, "d_conv": 3},
    variants=({"householders": 2},),
)
class DeltaRule(FastWeights):
    """``M = tril(Q K^T) (I + strictly_lower(diag(b) K K^T))^-1 diag(b)``, Q scaled by 1 / sqrt(E).

    As a recurrence ``S_i = S_{i-1} + b_i k_i (v_i - S_{i-1}^T k_i)^T``: each token corrects what its key reads by the
    share ``b_i = sigmoid(W_b x_i)``. Queries and keys are of length one. The recurrence is that of the published
    reference, the layer around it that of flash-linear-attention's ``DeltaNet``: a short convolution with SiLU, no
    biases, an RMS norm of every head.

    With ``householders=n`` every token brings n keys, values and shares, which write one after the other before its
    query reads (DeltaProduct): the state goes through ``prod_m (I - b_im k_im k_im^T)``, which with shares up to 2 is
    any product of n reflections, where one reflection a token cannot turn. The matrix is ``L x n L``, its columns are
    all first values, all second ones, and so on:

        M = [tril(Q K_1^T) ... tril(Q K_n^T)] P^T (I + strictly_lower(diag(b) K K^T))^-1 diag(b) P

    where P puts the n writes of a token in a row, and K and b are those of all n L writes. The layer is
    flash-linear-attention's ``GatedDeltaProduct`` without its forget gate.

    Args:
        heads: number of heads H.
        expand_k: width of all queries over the model width.
        expand_v: width of all values over the model width.
        out_gate: a SiLU gate.
        d_conv: taps of the causal convolution over queries, keys and values; None leaves SiLU alone.
        negative_eigenvalues: shares from 0 to 2, so that a key can turn what it reads round (arXiv 2411.12537).
        householders: keys, values and shares n of every token (arXiv 2502.10297).
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
        householders: int = 1,
        eps: float = 1e-5,
    ) -> None:
        strengths = {"extra": heads * householders, "writes": householders}
        super().__init__(dim, grid, heads, expand_k, expand_v, out_gate, d_conv, eps, **strengths)
        self.negative_eigenvalues = negative_eigenvalues

    def _split(self, mixed: Tensor, *rest: Any) -> FastWeightTokens:
        return super()._split(F.silu(mixed) if self.conv1d is None else mixed, *rest)

    def _features(self, query: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        # Kept in float32: the solve below multiplies the rounding of keys.
        query, key = (t.to(working_dtype(t)) for t in (query, key))
        return tuple(t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (query, key))  # type: ignore[return-value]

    def _strength(self, tokens: FastWeightTokens) -> Tensor:
        """``b``, ``(B, H, n L)``."""
        assert tokens.control is not None
        strength = torch.sigmoid(in_a_row(tokens.control, self.writes).to(tokens.key.dtype)).mT
        return 2 * strength if self.negative_eigenvalues else strength

    def _factors(
        self, tokens: FastWeightTokens, segments: Tensor | None = None
    ) -> tuple[Matrix, UnitLowerInverse, Diagonal]:
        """What reads (all first writes, all second ones, ...), what corrects, and the shares, of writes in a row."""
        strength, key, count = self._strength(tokens), tokens.key, self.writes
        decay = forgetting(key.new_zeros(1, key.shape[1], tokens.query.shape[2]), segments)
        reads = [Semiseparable(tokens.query, one, decay) for one in self._by_write(key)]
        own = None if segments is None else repeated(segments, count)
        solve = UnitLowerInverse(strength.unsqueeze(-1) * key, key, segments=own)
        return reads[0] if count == 1 else ColumnCat(tuple(reads)), solve, Diagonal(strength)

    def _mixing(self, tokens: FastWeightTokens, mask: Tensor | None, segments: Tensor | None) -> Matrix:
        read, solve, strength = self._factors(tokens, segments)
        if self.writes == 1:
            return Product((read, solve, strength))
        place = torch.arange(tokens.key.shape[2], device=tokens.key.device)
        row, back = (place.view(shape).mT.flatten() for shape in ((self.writes, -1), (-1, self.writes)))
        order = [Permutation(index, tokens.key.dtype) for index in (back, row)]
        return Product((read, order[0], solve, strength, order[1]))

    def _remember(self, tokens: FastWeightTokens, mask: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        read, solve, strength = self._factors(tokens)
        values = tokens.values.to(tokens.key.dtype)
        if memory is not None:  # what keys already hold is taken off what they are to hold
            values = values - tokens.key @ memory.mT
        new = solve.matmul(strength.matmul(values))
        mixed, written = read.matmul(self._streams(new)), new.mT @ tokens.key
        return (mixed, written) if memory is None else (mixed + tokens.query @ memory.mT, memory + written)

    def _update(self, memory: Tensor, tokens: FastWeightTokens) -> Tensor:
        dtype = memory.dtype
        strength = self._strength(tokens).unsqueeze(-1).to(dtype)
        writes = (t.to(dtype).split(1, 2) for t in (tokens.key, tokens.values, strength))
        for key, values, share in zip(*writes, strict=True):
            held = (memory @ key.mT).mT
            memory = memory + outer(share * (values - held), key)
        return memory

    published: ClassVar[dict[str, Callable[..., Any]]] = {
        "fla-org/flash-linear-attention": from_fla("g_proj", "b_proj")
    }
