"""VQ attention: softmax attention over keys of which there are only S, in linear time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Product
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.selection import Selection
from matmix.matrices.semiseparable import Semiseparable
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.effective import exactly, tensor_of
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.vector_quantizer import VectorQuantizer


@register(
    "vq_attention",
    matrix="Softmax Diagonal Selection^T per head; causal: Diagonal Semiseparable",
    cost="O(L D S + L D^2)",
    source="transformer-vq/transformer_vq",
    paper="2309.16354, section 3",
    smallest={"head_dim": 4, "codes": 3},
)
class VQAttention(Mixer):
    """``softmax(q_i . c_{z_j}) v_j`` over all tokens j, where z_j is the codeword nearest to key j.

    Keys of one code weigh the same, so the matrix is ``softmax(Q C^T + log n) diag(1 / n) Z^T`` per head, with n the
    number of tokens of each code and Z their one-hot choice: rank S, and exactly the attention over quantised keys.
    Queries and keys are layer-normalised without gain and scaled by ``E^(-1/4)``. Masked tokens choose no code.

    Looking back only, the counts and choices are those of the tokens up to i: ``diag(1 / sum) tril(exp(Q C^T) Z^T)``, a
    semiseparable matrix of order S without decay, by chunks in O(L S W); token by token the state is a count and a sum
    of values a code.

    Published is the quantiser (nearest code, moving averages, commitment); the paper's layer around it is a gated unit
    with a position bias within two blocks, which ``longvq`` is nearer to. Here, heads as in attention. The published
    gradient goes straight through to every key, which costs O(L S E W) for keys that are quantised everywhere; here
    it goes to the mean of the keys of a code (so far, looking back only), so that the keys of one code share theirs.
    The choice of a code is made in float32 at least.

    In training the codebook moves after each step, and the commitment loss is collected, both as ``matmix.training``
    says; the weight of that loss is the paper's.

    Args:
        head_dim: width E of a head; there are ``dim // head_dim`` heads, at least one.
        codes: codewords S of a head.
        decay: of the codebook's moving averages.
        commitment: weight of the loss ``distance(x)`` in training.
        causal: token i sees tokens up to i.
    """

    traits = Traits(data_dependent=True, mask="trim", straight_through=True)

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        head_dim: int = 32,
        codes: int = 512,
        decay: float = 0.99,
        commitment: float = 1e-4,
        causal: bool = False,
    ) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, recurrent=True, aligned=True)
        super().__init__(dim, grid)
        self.head_dim, self.heads, self.causal = head_dim, max(1, dim // head_dim), causal
        inner = self.heads * head_dim
        self.qv = nn.Linear(dim, 2 * inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.quantizer = VectorQuantizer(self.heads, codes, head_dim, decay, head_dim**-0.25, commitment)
        self.proj = nn.Linear(inner, dim, bias=False)

    def _keys(self, x: Tensor) -> Tensor:
        """Normalised keys ``(B, H, L, E)``, in float32 at least: a code must not hang on a rounding."""
        with full_precision(x.device):
            return normalize_heads(exactly(self.key, x), self.heads)

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries and values, ``(B, H, L, E)``."""
        query, values = self.qv(x).chunk(2, -1)
        return normalize_heads(query, self.heads), split_heads(values, self.heads)

    def project(self, x: Tensor, context: Context) -> Projected:
        keys = self._keys(x)
        query, values = self._queries(x)
        codes, book = self.quantizer(keys), self.quantizer.codebook()
        if self.causal:
            with full_precision(x.device):
                past = past_codes(query, keys, codes, book, context.mask)
                matrix = Product((Diagonal(inverse((past.table * past.number).sum(-1))), past.everywhere()))
        else:
            matrix = over_codes(query, keys, codes, book, context.mask)
        quantised = (keys, codes, context.mask) if self.training else None
        return Projected(matrix, values.to(keys.dtype), (x.dtype, quantised))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        dtype, quantised = rest
        if quantised is not None:
            mixed = self.quantizer.note(mixed, *quantised)
        return self.proj(merge_heads(mixed).to(dtype))

    # ------------------------------------------------------------------ token by token: a count and a sum a code

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        heads, codes, size = self.quantizer.c_sum.shape
        like = tensor_of(self.key, self)
        zeros = like.new_zeros(batch, heads, codes, size, dtype=working_dtype(like))
        return zeros[..., 0], zeros

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        count, total = self.init_state(x.shape[0]) if state is None else state
        keys = self._keys(x)
        query, values = self._queries(x)
        values = values.to(keys.dtype)
        with full_precision(x.device):
            past = past_codes(query, keys, self.quantizer(keys), self.quantizer.codebook(), mask, count)
            mixed = past.everywhere().matmul(values) + past.table @ total.to(values.dtype)
            mixed = mixed * inverse((past.table * past.number).sum(-1, keepdim=True))
            state = past.number[:, :, -1].to(count.dtype), total + (past.chosen.mT @ values).to(total.dtype)
        return self.merge(mixed, (x.dtype, None)), state

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        count, total = state
        x = x.unsqueeze(1)
        query, value = self._queries(x)
        with full_precision(x.device):
            chosen = one_hot(self.quantizer(self._keys(x)), count.shape[2], count.dtype)
            count, total = count + chosen.squeeze(2), total + chosen.mT * value.to(total.dtype)
            scores = query.to(count.dtype) @ self.quantizer.codebook().to(count.dtype).mT
            weight = past_weights(scores, count.unsqueeze(2))
            mixed = weight @ total / (weight * count.unsqueeze(2)).sum(-1, keepdim=True)
        return self.merge(mixed, (x.dtype, None)).squeeze(1), (count, total)

    def distance(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Squared distance of keys from their codewords, summed over heads: the commitment loss, not weighted."""
        mask = self._context(x, (x.shape[1],), mask).mask
        keys = self._keys(drop_padding(x, mask))
        return self.quantizer.distance(keys, self.quantizer(keys), mask)


def normalize_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, L, H E)`` as ``(B, H, L, E)``, layer-normalised and times ``E^(-1/4)``, in float32 at least."""
    wide = x.to(working_dtype(x)).unflatten(-1, (heads, x.shape[-1] // heads))
    return (F.layer_norm(wide, wide.shape[-1:]) * wide.shape[-1] ** -0.25).transpose(1, 2)


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
    chosen = Selection(hide(codes, mask), count, dtype)
    number = chosen.rmatmul(query.new_ones(*codes.shape, 1)).squeeze(-1)  # (B, H, S)
    average = Product((Diagonal(number.clamp(min=1).reciprocal()), chosen.mT))
    mean = average.matmul(keys.to(dtype))
    words = book.to(dtype) + (mean - mean.detach())
    # A code that nobody chose is as good as absent; finite, so that a row without any code is finite too.
    unused = torch.finfo(dtype).min / 4
    bias = torch.where(number > 0, number.clamp(min=1).log(), unused).unsqueeze(2).expand(-1, -1, query.shape[2], -1)
    return Product((Softmax(query, words, bias=bias, factor=1.0), *average.factors))


class PastCodes(NamedTuple):
    """The attention of every token to the codes of the tokens up to it."""

    table: Tensor  # (B, H, L, S): exp of the scores, the largest of a row 1; 0 for codes not seen yet
    chosen: Tensor  # (B, H, L, S) one-hot: the code of each token; zeros where masked
    number: Tensor  # (B, H, L, S): tokens of each code so far

    def everywhere(self) -> Semiseparable:
        """``M[i, j] = table[i, z_j]`` for ``j <= i``."""
        return Semiseparable(self.table, self.chosen, self.table.new_zeros(1, *self.table.shape[1:3]))


def past_codes(
    query: Tensor, keys: Tensor, codes: Tensor, book: Tensor, mask: Tensor | None, before: Tensor | None = None
) -> PastCodes:
    """Arguments as of ``over_codes``, and tokens of each code ``(B, H, S)`` that came before; the gradient of keys goes
    to the mean of the keys of a code so far."""
    chosen = one_hot(hide(codes, mask), book.shape[1], query.dtype)
    count = chosen.cumsum(2)
    count = count if before is None else count + before.to(count.dtype).unsqueeze(2)
    scores = query @ book.to(query.dtype).mT
    if torch.is_grad_enabled():
        # q . mean, with a mean for every row: causal scores q_i . k_j, added up by code.
        among = Semiseparable(query.detach(), keys.to(query.dtype), query.new_zeros(1, *query.shape[1:3]))
        mean = among.matmul(chosen) / count.clamp(min=1)
        scores = scores + (mean - mean.detach())
    return PastCodes(past_weights(scores, count), chosen, count)


def past_weights(scores: Tensor, count: Tensor) -> Tensor:
    """``exp`` of the scores of codes that were seen, relative to the largest of them; 0 for the others."""
    scores = scores.masked_fill(count == 0, torch.finfo(scores.dtype).min / 4)
    return (scores - scores.detach().amax(-1, keepdim=True)).exp() * (count > 0)


def one_hot(codes: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Codes ``(B, H, L)`` as ``(B, H, L, S)``; -1 is none."""
    return (codes.unsqueeze(-1) == torch.arange(count, device=codes.device)).to(dtype)


def hide(codes: Tensor, mask: Tensor | None) -> Tensor:
    """Codes with -1 at masked tokens."""
    return codes if mask is None else codes.masked_fill(~mask.unsqueeze(1), -1)


def inverse(total: Tensor) -> Tensor:
    """``1 / total``, and 0 where nothing was added up."""
    return total.clamp(min=torch.finfo(total.dtype).tiny).reciprocal().masked_fill(total <= 0, 0)
