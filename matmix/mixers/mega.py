"""Mega: one head of attention over moving averages, behind gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.chunk_diagonal import ChunkDiagonal
from matmix.matrices.laplace import Laplace, SquaredReLU
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits
from matmix.mixers.ema import EMA
from matmix.mixers.registry import register
from matmix.ops.masks import continued
from matmix.ops.precision import working_dtype

WEIGHTS: dict[str, Callable[..., Matrix]] = {"softmax": Softmax, "laplace": Laplace, "relu2": SquaredReLU}


@register(
    "mega",
    matrix="Softmax, Laplace or SquaredReLU, one head; in blocks: ChunkDiagonal",
    cost="O(L^2 D + L D^2); in blocks of C: O(L C D + L D^2 + L D log L)",
    source="facebookresearch/mega",
    paper="2209.10655, equations 7 to 16",
    smallest={"qk_dim": 4, "d_state": 2, "max_len": 8},
)
class Mega(Mixer):
    """``x + u (silu(h + W_h (r * attention)) - x)``: norm, residual and gates belong to the mixer, as published.

    In a block that has a norm and a residual of its own, ``residual=False`` leaves both to it. Where the block is
    post-norm, the whole is then what it is without; where it is pre-norm, the gate reads the normalised tokens.

    Of ``x' = norm(x)`` and its moving averages ``m = EMA(x')``: the gates u (sigmoid) and r (SiLU), the part h, one
    shared vector z that scales and shifts turn into queries and keys, all from m; values ``silu(W_v x')``. The matrix
    is the attention, with a learned bias for every distance. Not linear in the product: SiLU. Images are read row by
    row.

    Weights are softmax, or of each score by itself, divided by the number of keys: Laplace (the normal distribution
    function) or a squared ReLU. With these, causal rows count the real keys up to their own; the published code counts
    padding too.

    The bias of a distance is a number of its own, or rotary: ``sum_n Re(conj(a_n) b_n e^(i (j - i) w_n))`` with two
    learned vectors of qk_dim / 2 complex numbers and ``w_n = 10000^(-2 n / qk_dim)``, for any distance.

    Args:
        qk_dim: width E of queries and keys.
        hidden: width of values and of r; None is ``2 * dim``.
        d_state: averages of a channel.
        act: the attention function, what turns scores into weights: "softmax" (published for text), "laplace" (for
            pixels and speech) or "relu2".
        rel_pos_bias: "simple" (a number a distance, as published for all tasks) or "rotary".
        causal: look back only; unless in blocks, the mixer then also runs token by token.
        block: tokens of a block (the published chunk), which attend to one another only; None is the whole sequence.
            With blocks a mask is a promise of content only, as padding on the left moves the borders. Lengths need
            not be multiples.
        max_len: distances with a bias of their own (if simple); longer ones share that of the longest. Blocks need
            only their own.
        residual: norm the tokens and add them to what comes out; False is ``u (silu(...) - x)`` of x as it comes.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        qk_dim: int = 64,
        hidden: int | None = None,
        d_state: int = 16,
        act: Literal["softmax", "laplace", "relu2"] = "softmax",
        rel_pos_bias: Literal["simple", "rotary"] = "simple",
        causal: bool = False,
        block: int | None = None,
        max_len: int = 1024,
        residual: bool = True,
    ) -> None:
        traits = type(self).traits
        if causal:
            traits = replace(traits, causal=True, aligned=True, recurrent=block is None)
        self.traits = traits if block is None else replace(traits, mask="content")
        super().__init__(dim, grid)
        if rel_pos_bias == "rotary" and qk_dim % 2:
            raise ValueError(f"rel_pos_bias='rotary' needs an even qk_dim, got {qk_dim!r}")
        hidden = 2 * dim if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden!r}")
        self.act, self.causal, self.block = act, causal, block
        self.sizes = (dim, qk_dim, hidden, dim)  # u, z, r, h
        self.residual = residual
        self.norm = nn.LayerNorm(dim) if residual else nn.Identity()
        self.move = EMA(dim, d_state=d_state, causal=causal)
        self.v_proj, self.mx_proj, self.h_proj = (
            nn.Linear(dim, hidden),
            nn.Linear(dim, sum(self.sizes)),
            nn.Linear(hidden, dim),
        )
        self.gamma, self.beta = nn.Parameter(0.02 * torch.randn(2, qk_dim)), nn.Parameter(torch.zeros(2, qk_dim))
        reach = max_len if block is None else block
        shape = (2, qk_dim) if rel_pos_bias == "rotary" else (2 * reach - 1,)
        self.rel_pos_bias = nn.Parameter(0.02 * torch.randn(shape))
        for layer in (self.v_proj, self.mx_proj, self.h_proj):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def _bias(self, rows: Tensor, columns: int) -> Tensor:
        """The bias of the distances ``j - i`` of some rows, ``(1, 1, rows, columns)``."""
        distance = torch.arange(columns, device=rows.device) - rows.unsqueeze(1)
        if self.rel_pos_bias.dim() == 2:
            return self._rotary(distance)[None, None]
        reach = len(self.rel_pos_bias) // 2
        return self.rel_pos_bias[distance.clamp(-reach, reach) + reach][None, None]

    def _rotary(self, distance: Tensor) -> Tensor:
        """``Re(sum_n conj(a_n) b_n e^(i distance w_n))``, the product of a and b turned by their positions."""
        dtype, half = working_dtype(self.rel_pos_bias), self.rel_pos_bias.shape[1] // 2
        (a_re, b_re), (a_im, b_im) = self.rel_pos_bias.to(dtype).split(half, 1)
        rate = 10000.0 ** (-torch.arange(half, device=distance.device, dtype=dtype) / half)
        angle = distance.unsqueeze(-1) * rate
        bias = angle.cos() @ (a_re * b_re + a_im * b_im) - angle.sin() @ (a_re * b_im - a_im * b_re)
        return bias.to(self.rel_pos_bias.dtype)

    def _attention(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Matrix:
        """The matrix of queries and keys ``(B, 1, L, E)``."""
        columns = torch.arange(key.shape[2], device=query.device)
        bias = self._bias(columns[key.shape[2] - query.shape[2] :], key.shape[2])
        return WEIGHTS[self.act](query, key, mask, bias, causal=self.causal)

    def _in_blocks(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Matrix:
        length = query.shape[2]
        size = min(self.block or length, length)
        blocks = -(-length // size)
        fill = blocks * size - length
        if fill and mask is None:
            mask = query.new_ones(query.shape[0], length, dtype=torch.bool)
        query, key = (F.pad(t, (0, 0, 0, fill)).reshape(-1, 1, size, t.shape[3]) for t in (query, key))
        mask = None if mask is None else F.pad(mask, (0, fill)).reshape(-1, size)
        return ChunkDiagonal(self._attention(query, key, mask), blocks, length)

    def _parts(self, x: Tensor, normed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Queries and keys ``(B, 1, L, E)``, values ``(B, 1, L, hidden)``, and what the end needs."""
        gate, shared, reset, straight = self.mx_proj(moved).split(self.sizes, -1)
        shared = F.silu(shared).unsqueeze(1)
        query, key = (shared * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))
        values = F.silu(self.v_proj(normed)).unsqueeze(1)
        return query, key, values, (x, torch.sigmoid(gate), F.silu(reset), straight)

    def project(self, x: Tensor, context: Context) -> Projected:
        normed = self.norm(x)
        query, key, values, rest = self._parts(x, normed, self.move(normed, grid=context.grid, mask=context.mask))
        mixing = self._attention if self.block is None else self._in_blocks
        return Projected(mixing(query, key, context.mask), values, rest)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        x, gate, reset, straight = rest
        hidden = F.silu(straight + self.h_proj(mixed.squeeze(1) * reset))
        change = hidden - x
        return torch.addcmul(x, gate, change) if self.residual else gate * change

    # ------------------------------------------------------------------ token by token: averages, keys, values

    def init_state(self, batch: int) -> State:
        if not self.traits.recurrent:
            return super().init_state(batch)
        empty = self.gamma.new_zeros(batch, 1, 0, self.sizes[1])
        values = self.gamma.new_zeros(batch, 1, 0, self.sizes[2])
        return self.move.init_state(batch), empty, values, torch.ones(batch, 0, dtype=torch.bool, device=empty.device)

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        averages, *cache = (None,) if state is None else state
        normed = self.norm(x)
        moved, averages = self.move.absorb(normed, mask, averages)
        query, key, values, rest = self._parts(x, normed, moved)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if cache:  # distances count: padding between the past and the tokens would part them
            key, values = (
                continued(past.squeeze(1), new.squeeze(1), mask).unsqueeze(1)
                for past, new in zip(cache[:2], (key, values), strict=True)
            )
            mask = real = continued(cache[2], real, mask)
        out = self.merge(self._attention(query, key, mask).matmul(values), rest)
        return out, (averages, key, values, real)

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        averages, keys, values, real = state
        normed = self.norm(x)
        moved, averages = self.move.advance(normed, averages)
        query, key, value, rest = self._parts(x.unsqueeze(1), normed.unsqueeze(1), moved.unsqueeze(1))
        keys, values = torch.cat((keys.to(key.dtype), key), 2), torch.cat((values.to(value.dtype), value), 2)
        real = torch.cat((real, real.new_ones(x.shape[0], 1)), 1)
        last = torch.full((1,), keys.shape[2] - 1, device=x.device)
        weights = WEIGHTS[self.act](query, keys, real, self._bias(last, keys.shape[2]))
        mixed = weights.matmul(values)
        return self.merge(mixed, rest).squeeze(1), (averages, keys, values, real)

    @staticmethod
    def _from_published(module: Mega, state: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = {name.replace("norm.norm.", "norm."): value for name, value in state.items()}
        if "rel_pos_bias.alpha" in ours:
            ours["rel_pos_bias"] = torch.cat([ours.pop("rel_pos_bias.alpha"), ours.pop("rel_pos_bias.beta")])
            ours.pop("rel_pos_bias._float_tensor", None)  # there, it only tells the device
        else:
            ours["rel_pos_bias"] = ours.pop("rel_pos_bias.rel_pos_bias")
        return ours

    published: ClassVar[dict[str, Callable[..., Any]]] = {"facebookresearch/mega": _from_published}
