"""LongVQ: Mega's gated block with quantised keys, in linear time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Product, Sum
from matmix.matrices.banded import Banded
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.selection import Selection
from matmix.mixers.base import Context, Grid, Projected, State, drop_padding
from matmix.mixers.mega import Mega
from matmix.mixers.registry import register
from matmix.mixers.vq_attention import hide, inverse, one_hot, past_codes, past_weights
from matmix.ops.masks import continued
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.vector_quantizer import VectorQuantizer


@register(
    "longvq",
    matrix="Diagonal (Dense Selection^T + Banded), one head; causal: Diagonal (Semiseparable + Banded)",
    cost="O(L D (S + w + D) + L D log L)",
    source="no published code",
    paper="2404.11163",
    smallest={"qk_dim": 4, "d_state": 2, "codes": 3, "window": 2},
)
class LongVQ(Mega):
    """``M[i, j] = exp(q_i . c_{z_j} + b_{j-i}) / sum``, b only within a window: rank S and a band, rows scaled to one.

    Moving averages m of the tokens make queries and keys, keys are replaced by the nearest of S codewords, and the
    bias of the window tells near from far, which the codes cannot. Keys of one code weigh the same, so the sums over
    all tokens are sums over S codes, and the window adds ``(exp(b) - 1) exp(q_i . c_{z_j})`` for its pairs: the same
    matrix as if every pair had been computed.

    There is no published code, and the paper's text leaves open what follows. Choices made here:

    - the state space: Mega's moving averages (``ema``), both ways, with SiLU;
    - what is quantised: keys only, and they come from m, as Mega's do, by scale and shift of one shared vector;
    - queries and keys are layer-normalised without gain and scaled by ``E^(-1/4)``, as in Transformer-VQ;
    - codebook: one head, so one codebook a layer; S an option; moved by averages after each step, as in
      ``vq_attention``, not by gradient; masked tokens do not count;
    - gradient of keys: straight through, to the mean of the keys of a code (see ``vq_attention``);
    - commitment loss: that of Transformer-VQ, with its weight;
    - gates: Mega's, sigmoid between input and output, SiLU on the attention;
    - window: tokens at most ``window`` away, with quantised keys too; their bias is a number a distance. They stay in
      the sums over codes, as one softmax over all tokens;
    - softmax, not Laplace; layer norm before the block;
    - looking back only: averages, window and sums over codes are those of the tokens up to i, as in Transformer-VQ, and
      the matrix is semiseparable of order S plus a band; token by token the state is a count and a sum a code, and the
      last w tokens.

    Args:
        qk_dim: width E of queries and keys.
        hidden: width of values; None is ``2 * dim``.
        d_state: averages of a channel.
        codes: codewords S.
        window: distance w up to which pairs have a bias.
        decay: of the codebook's moving averages.
        commitment: weight of the loss ``distance(x)`` in training.
        causal: token i sees tokens up to i.
    """

    traits = replace(Mega.traits, straight_through=True)

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        qk_dim: int = 64,
        hidden: int | None = None,
        d_state: int = 16,
        codes: int = 512,
        window: int = 16,
        decay: float = 0.99,
        commitment: float = 1e-4,
        causal: bool = False,
    ) -> None:
        super().__init__(dim, grid, qk_dim=qk_dim, hidden=hidden, d_state=d_state, causal=causal, max_len=window + 1)
        # Queries and keys are normalised, so their size is free, and keys that start alike would share one code.
        nn.init.normal_(self.gamma, mean=1.0, std=0.02)
        with torch.no_grad():
            self.mx_proj.weight[dim : dim + qk_dim].normal_(std=dim**-0.5)
        self.window = window
        self.quantizer = VectorQuantizer(1, codes, qk_dim, decay, qk_dim**-0.25, commitment)

    def _inner(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Normalised queries and keys ``(B, 1, L, E)`` in float32 at least, values, and what the end needs."""
        normed = self.norm(x)
        return self._normalised(x, normed, self.move(normed, grid=context.grid, mask=context.mask))

    def _normalised(self, x: Tensor, normed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor, Any]:
        query, key, values, rest = self._parts(x, normed, moved)
        size = query.shape[-1]
        # As a gain: onnxruntime loses a product with a number before a matrix product when another reads it too.
        gain = query.new_full((size,), size**-0.25, dtype=working_dtype(query))
        query, key = (F.layer_norm(t.to(gain.dtype), (size,), gain) for t in (query, key))
        return query, key, values.to(query.dtype), rest

    def project(self, x: Tensor, context: Context) -> Projected:
        query, key, values, rest = self._inner(x, context)
        codes = self.quantizer(key)
        with full_precision(x.device):
            matrix = self._over_codes(query, key, codes, context.mask)
        return Projected(matrix, values, (rest, (key, codes, context.mask) if self.training else None))

    def _over_codes(self, query: Tensor, key: Tensor, codes: Tensor, mask: Tensor | None) -> Product:
        dtype, reach, book = query.dtype, self.window, self.quantizer.codebook()
        ahead = 0 if self.causal else reach
        everywhere: Matrix
        chosen = hide(codes, mask)
        if self.causal:
            past = past_codes(query, key, codes, book, mask)
            table, number, everywhere = past.table, past.number, past.everywhere()
        else:
            selection = Selection(chosen, book.shape[1], dtype)
            number = selection.rmatmul(query.new_ones(*codes.shape, 1)).mT  # tokens of each code, (B, 1, 1, S)
            mean = selection.rmatmul(key) / number.mT.clamp(min=1)
            table = past_weights(query @ (book.to(dtype) + (mean - mean.detach())).mT, number)  # (B, 1, L, S)
            everywhere = Product((Dense(table), selection.mT))

        # The code of the token at each distance of the window, -1 beyond the sequence and where masked.
        # Picked, not unfolded: windows that overlap make a tracer ask for the length, and ONNX has them by loops only.
        token, distance = (torch.arange(n, device=codes.device) for n in (chosen.shape[2], reach + ahead + 1))
        padded = F.pad(chosen, (reach, ahead), value=-1)
        near = padded[:, :, token.unsqueeze(1) + distance]  # (B, 1, L, distances)
        band = self._near(table, near)
        total = (table * number).sum(-1) + band.sum(-1)
        window = Banded(band, tuple(range(-reach, ahead + 1)))
        return Product((Diagonal(inverse(total)), Sum((everywhere, window))))

    def _near(self, table: Tensor, near: Tensor) -> Tensor:
        """What the bias adds to the pairs of a window, of the codes ``near``, from the farthest before the token on."""
        pairs = table.gather(3, near.clamp(min=0)).masked_fill(near < 0, 0)
        return pairs * torch.expm1(self.rel_pos_bias[: near.shape[3]].to(table.dtype))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        rest, quantised = rest
        if quantised is not None:
            mixed = self.quantizer.note(mixed, *quantised)
        return super().merge(mixed.to(rest[0].dtype), rest)

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        codes, width = self.quantizer.c_count.shape[1], self.sizes[2]
        total = self.gamma.new_zeros(batch, 1, codes, width, dtype=working_dtype(self.gamma))
        nobody = torch.full((batch, 1, self.window), -1, device=total.device)
        return self.move.init_state(batch), total[..., 0], total, nobody, total.new_zeros(batch, 1, self.window, width)

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        averages, count, total, last, recent = self.init_state(x.shape[0]) if state is None else state
        normed = self.norm(x)
        moved, averages = self.move.absorb(normed, mask, None if state is None else averages)
        query, key, values, rest = self._normalised(x, normed, moved)
        reach = self.window
        with full_precision(x.device):
            codes = self.quantizer(key)
            past = past_codes(query, key, codes, self.quantizer.codebook(), mask, count)
            # The window reaches back over the border of the state.
            codes = continued(last.squeeze(1), hide(codes, mask).squeeze(1), mask).unsqueeze(1)
            near = continued(recent.squeeze(1), values.squeeze(1), mask).unsqueeze(1)
            band = self._near(past.table, codes.unfold(2, reach + 1, 1))
            window = Banded(F.pad(band, (0, 0, reach, 0)), tuple(range(-reach, 1)))
            mixed = past.everywhere().matmul(values) + past.table @ total.to(values.dtype)
            mixed = mixed + window.matmul(near)[:, :, reach:]
            mixed = mixed * inverse((past.table * past.number).sum(-1) + band.sum(-1)).unsqueeze(-1)
            total = total + (past.chosen.mT @ values).to(total.dtype)
        number = past.number[:, :, -1].to(count.dtype)
        return self.merge(mixed, (rest, None)), (averages, number, total, codes[:, :, -reach:], near[:, :, -reach:])

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        averages, count, total, last, recent = state
        normed = self.norm(x)
        moved, averages = self.move.advance(normed, averages)
        query, key, value, rest = self._normalised(x.unsqueeze(1), normed.unsqueeze(1), moved.unsqueeze(1))
        with full_precision(x.device):
            code = self.quantizer(key)
            chosen = one_hot(code, count.shape[2], count.dtype)
            count, total = count + chosen.squeeze(2), total + chosen.mT * value.to(total.dtype)
            last, recent = torch.cat((last, code), 2), torch.cat((recent, value.to(recent.dtype)), 2)
            scores = query.to(count.dtype) @ self.quantizer.codebook().to(count.dtype).mT
            table = past_weights(scores, count.unsqueeze(2))
            band = self._near(table, last.unsqueeze(2))
            mixed = table @ total + band @ recent
            mixed = mixed / ((table * count.unsqueeze(2)).sum(-1, keepdim=True) + band.sum(-1, keepdim=True))
        return self.merge(mixed, (rest, None)).squeeze(1), (averages, count, total, last[:, :, 1:], recent[:, :, 1:])

    def distance(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Squared distance of keys from their codewords: the commitment loss, not weighted."""
        context = self._context(x, (x.shape[1],), mask)
        _, key, _, _ = self._inner(drop_padding(x, mask), context)
        return self.quantizer.distance(key, self.quantizer(key), mask)

    published: ClassVar[dict[str, Any]] = {}
