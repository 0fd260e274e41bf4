"""VQ attention: softmax attention over keys of which there are only S, in linear time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Product
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.selection import Selection
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.vector_quantizer import VectorQuantizer


@register(
    "vq_attention",
    matrix="Softmax Diagonal Selection^T per head",
    cost="O(L D S + L D^2)",
    source="transformer-vq/transformer_vq",
    paper="2309.16354, theorem 3.6 without the causal mask",
    smallest={"head_dim": 4, "codes": 3},
)
class VQAttention(Mixer):
    """``softmax(q_i . c_{z_j}) v_j`` over all tokens j, where z_j is the codeword nearest to key j.

    Keys of one code weigh the same, so the matrix is ``softmax(Q C^T + log n) diag(1 / n) Z^T`` per head, with n the
    number of tokens of each code and Z their one-hot choice: rank S, and exactly the attention over quantised keys.
    Queries and keys are layer-normalised without gain and scaled by ``E^(-1/4)``. Masked tokens choose no code.

    Published is the quantiser (nearest code, moving averages, commitment); the paper's layer is a causal gated unit.
    Here, heads as in attention and every token sees all. The published gradient goes straight through to every key,
    which costs O(L S E W) for keys that are quantised everywhere; here it goes to the mean of the keys of a code, at
    no cost, so that the keys of one code share theirs. The choice of a code is made in float32 at least.

    In training mode a forward also moves the codebook. The commitment loss, 1e-4 times ``commitment(x)`` in the
    paper, is for the training loop to add.

    Args:
        head_dim: width E of a head; there are ``dim // head_dim`` heads, at least one.
        codes: codewords S of a head.
        decay: of the codebook's moving averages.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self, dim: int, grid: Grid | None = None, *, head_dim: int = 32, codes: int = 512, decay: float = 0.99
    ) -> None:
        super().__init__(dim, grid)
        for name, value in (("head_dim", head_dim), ("codes", codes)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.head_dim, self.heads = head_dim, max(1, dim // head_dim)
        inner = self.heads * head_dim
        self.qv = nn.Linear(dim, 2 * inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.quantizer = VectorQuantizer(self.heads, codes, head_dim, decay, scale=head_dim**-0.25)
        self.proj = nn.Linear(inner, dim, bias=False)

    def _keys(self, x: Tensor) -> Tensor:
        """Normalised keys ``(B, H, L, E)``, in float32 at least: a code must not hang on a rounding."""
        with full_precision(x.device):
            dtype = working_dtype(x, self.key.weight)
            return normalize_heads(F.linear(x.to(dtype), self.key.weight.to(dtype)), self.heads)

    def project(self, x: Tensor, context: Context) -> Projected:
        keys = self._keys(x)
        query, values = self.qv(x).chunk(2, -1)
        query, values = normalize_heads(query, self.heads), split_heads(values, self.heads)
        codes = self.quantizer(keys)
        matrix = over_codes(query, keys, codes, self.quantizer.codebook(), context.mask)
        if self.training:
            self.quantizer.update_(keys, codes, context.mask)
        return Projected(matrix, values.to(keys.dtype))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return self.proj(merge_heads(mixed).to(self.proj.weight.dtype))

    def commitment(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Squared distance of keys from their codewords, the sum over heads; the mean over tokens, masked ones as 0."""
        mask = self._context(x, (x.shape[1],), mask).mask
        keys = self._keys(x)
        error = self.quantizer.squared_error(keys, self.quantizer(keys)).sum(1)
        return (error if mask is None else error * mask).mean()


def normalize_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, L, H E)`` as ``(B, H, L, E)``, layer-normalised and times ``E^(-1/4)``, in float32 at least."""
    wide = split_heads(x.to(working_dtype(x)), heads)
    return F.layer_norm(wide, wide.shape[-1:]) * wide.shape[-1] ** -0.25


def over_codes(query: Tensor, keys: Tensor, codes: Tensor, book: Tensor, mask: Tensor | None) -> Product:
    """The attention of queries ``(B, H, L, E)`` to the codewords of the keys, a matrix of rank S.

    Args:
        query: ``(B, H, L, E)``.
        keys: before quantisation, ``(B, H, L, E)``; the means of those of one code get its gradient.
        codes: ``(B, H, L)``.
        book: codewords ``(H, S, E)``.
        mask: ``(B, L)``; masked tokens are left out.
    """
    count, dtype = book.shape[1], query.dtype
    codes = codes if mask is None else codes.masked_fill(~mask.unsqueeze(1), -1)
    chosen = Selection(codes, count, dtype)
    number = chosen.rmatmul(query.new_ones(*codes.shape, 1)).squeeze(-1)  # (B, H, S)
    average = Product((Diagonal(number.clamp(min=1).reciprocal()), chosen.mT))
    mean = average.matmul(keys.to(dtype))
    words = book.to(dtype) + (mean - mean.detach())
    # A code that nobody chose is as good as absent; finite, so that a row without any code is finite too.
    unused = torch.finfo(dtype).min / 4
    bias = torch.where(number > 0, number.clamp(min=1).log(), unused).unsqueeze(2).expand(-1, -1, query.shape[2], -1)
    return Product((Softmax(query, words, bias=bias, factor=1.0), *average.factors))
