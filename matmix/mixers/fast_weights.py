"""What retention, gated linear attention and the delta rule share: a state that keys write and queries read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.semiseparable import Semiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, split_heads
from matmix.ops.effective import tensor_of
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.linear import linear
from matmix.ops.masks import forgetting
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.ssd import ssd_scan


class FastWeightState(NamedTuple):
    """What one token hands to the next."""

    window: Tensor  # (B, channels, taps): the last inputs of the short convolution; no taps where there is none
    memory: Tensor  # (B, H, W, E)
    position: Tensor  # (B,) int64: real tokens so far


class FastWeightTokens(NamedTuple):
    """Some tokens, projected."""

    query: Tensor  # (B, H, L, E), scaled by 1 / sqrt(E)
    key: Tensor  # (B, H, n L, E), a token's n writes in a row; of masked tokens zero
    values: Tensor  # (B, H, n L, W), in the same order
    gate: Tensor | None  # (B, L, H W)
    control: Tensor | None  # (B, L, extra): what decay or strength are made of


class FastWeights(Mixer):
    """``S_i = A_i S_{i-1} + k_i v_i^T, y_i = S_i^T q_i`` a head; a subclass says what A is, and with it the matrix.

    Queries, keys, values and gates come from one projection; at the end stand an RMS norm of every head, a SiLU gate
    and the output projection, so the end is not linear in the product. Time and memory are linear in L. Images are
    read row by row. Layers and names follow flash-linear-attention, whose checkpoints load.

    Args:
        heads: number of heads H.
        expand_k: width of all queries over the model width.
        expand_v: width of all values over the model width.
        out_gate: the SiLU gate.
        d_conv: taps of a causal convolution (with SiLU) over queries, keys and values; None is without.
        eps: added to the mean square of a head.
        extra: further columns of the projection, for decays or strengths.
        writes: keys and values n of every token.
    """

    traits = Traits(causal=True, data_dependent=True, mask="trim", recurrent=True, aligned=True, packed=True)

    def __init__(
        self,
        dim: int,
        grid: Grid | None,
        heads: int,
        expand_k: float,
        expand_v: float,
        out_gate: bool,
        d_conv: int | None,
        eps: float,
        *,
        extra: int = 0,
        writes: int = 1,
    ) -> None:
        super().__init__(dim, grid)
        keys, width = round(expand_k * dim), round(expand_v * dim)
        for name, factor, size in (("expand_k", expand_k, keys), ("expand_v", expand_v, width)):
            if size < 1 or size % heads:
                raise ValueError(f"{name} * dim must be a multiple of heads={heads}, got {factor!r} * {dim} = {size}")
        self.heads, self.key_dim, self.head_dim = heads, keys // heads, width // heads
        self.writes = writes
        self.sizes = (keys + writes * (keys + width), width if out_gate else 0, extra)
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv1d = None if d_conv is None else ShortConv(self.sizes[0], d_conv, bias=False)
        self.norm = (GatedRMSNorm if out_gate else nn.RMSNorm)(self.head_dim, eps=eps)
        self.out_proj = nn.Linear(width, dim, bias=False)

    # ------------------------------------------------------------------ what a subclass writes

    def _features(self, query: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(B, H, L, E)`` of tokens at ``position (B, L)``."""
        return query, key

    def _mixing(self, tokens: FastWeightTokens, mask: Tensor | None, segments: Tensor | None) -> Matrix:
        """The matrix."""
        raise NotImplementedError

    def _remember(self, tokens: FastWeightTokens, mask: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The product with the values, and the state ``(B, H, W, E)`` after the last token, from the one before."""
        raise NotImplementedError

    def _update(self, memory: Tensor, tokens: FastWeightTokens) -> Tensor:
        """The state after one more token (L = 1)."""
        raise NotImplementedError

    # ------------------------------------------------------------------ tokens to matrix and values

    def _split(
        self, mixed: Tensor, gate: Tensor, control: Tensor, position: Tensor, mask: Tensor | None
    ) -> FastWeightTokens:
        keys, width = self.heads * self.key_dim, self.heads * self.head_dim
        query, key, values = mixed.split((keys, self.writes * keys, self.writes * width), -1)
        key, values = (in_a_row(t, self.writes) for t in (key, values))
        query, key, values = (split_heads(t, self.heads) for t in (query, key, values))
        query, key = self._features(query, key, position)
        if mask is not None:
            key = key.masked_fill(~repeated(mask, self.writes)[:, None, :, None], 0)
        query = query * self.key_dim**-0.5
        return FastWeightTokens(query, key, values, gate if self.sizes[1] else None, control if self.sizes[2] else None)

    def project(self, x: Tensor, context: Context) -> Projected:
        mask, segments = context.mask, context.segments
        signal, gate, control = linear(self.in_proj, x).split(self.sizes, -1)
        if self.conv1d is not None:
            apart = {} if segments is None else {"segments": segments}
            signal = self.conv1d(drop_padding(signal, mask), silu=True, **apart)
        tokens = self._split(signal, gate, control, _positions(x, mask), mask)
        return Projected(self._mixing(tokens, mask, segments), self._streams(tokens.values), tokens.gate)

    def _by_write(self, x: Tensor) -> tuple[Tensor, ...]:
        """What writes have, ``(B, H, n L, .)`` in a row, as ``(B, H, L, .)`` of all first ones, all second ones, ..."""
        return (x,) if self.writes == 1 else x.unflatten(2, (-1, self.writes)).unbind(3)

    def _streams(self, values: Tensor) -> Tensor:
        """Values ``(B, H, n L, W)`` in the order of the columns: all first ones, all second ones, and so on."""
        return values if self.writes == 1 else torch.cat(self._by_write(values), 2)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        mixed = mixed.transpose(1, 2)  # (B, L, H, W): the norm is that of a head
        normed = self.norm(mixed) if rest is None else self.norm(mixed, rest.view(mixed.shape))
        return linear(self.out_proj, normed.flatten(2))

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> FastWeightState:
        weight = tensor_of(self.in_proj, self)
        taps = 0 if self.conv1d is None else self.conv1d.size
        memory = weight.new_zeros(batch, self.heads, self.head_dim, self.key_dim, dtype=working_dtype(weight))
        return FastWeightState(
            weight.new_zeros(batch, self.sizes[0] if taps else 0, taps),
            memory,
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
        )

    def absorb(self, x: Tensor, mask: Tensor | None, state: FastWeightState | None) -> tuple[Tensor, FastWeightState]:
        window, memory, before = (None, None, None) if state is None else state
        signal, gate, control = linear(self.in_proj, x).split(self.sizes, -1)
        if self.conv1d is None:
            window = x.new_zeros(x.shape[0], 0, 0)
        else:
            signal, window = self.conv1d.absorb(drop_padding(signal, mask), mask, window, silu=True)
        position = _positions(x, mask) if before is None else _positions(x, mask) + before.unsqueeze(1)
        tokens = self._split(signal, gate, control, position, mask)
        with full_precision(x.device):
            mixed, memory = self._remember(tokens, mask, memory)
        out = self.merge(mixed.to(tokens.values.dtype), tokens.gate)
        return out, FastWeightState(window, memory, position[:, -1] + 1)

    def advance(self, x: Tensor, state: FastWeightState) -> tuple[Tensor, FastWeightState]:
        signal, gate, control = self.in_proj(x.unsqueeze(1)).split(self.sizes, -1)
        window = state.window
        if self.conv1d is not None:
            signal, window = self.conv1d.step(signal.squeeze(1), window.to(signal.dtype))
            signal = F.silu(signal).unsqueeze(1)
        tokens = self._split(signal, gate, control, state.position.unsqueeze(1), None)
        with full_precision(x.device):
            memory = self._update(state.memory, tokens)
            read = memory @ tokens.query.to(memory.dtype).mT
        out = self.merge(read.mT.to(tokens.values.dtype), tokens.gate)
        return out.squeeze(1), FastWeightState(window, memory, state.position + 1)


class Forgetting(FastWeights):
    """``A_i`` is a decay, ``exp`` of ``_log_decay``: one a head (semiseparable), or one a head and key channel."""

    kind: ClassVar[type[Matrix]] = Semiseparable  # of queries, keys and log decays

    def _scan(
        self, values: Tensor, query: Tensor, key: Tensor, log_decay: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The product and the last state, from the one before."""
        return ssd_scan(values, query, key, log_decay, initial=initial)

    def _log_decay(self, tokens: FastWeightTokens, mask: Tensor | None) -> Tensor:
        """``(B or 1, H, L)`` or ``(B, H, L, E)``, in float32 at least; 0 at masked tokens."""
        raise NotImplementedError

    def _mixing(self, tokens: FastWeightTokens, mask: Tensor | None, segments: Tensor | None) -> Matrix:
        return self.kind(tokens.query, tokens.key, forgetting(self._log_decay(tokens, mask), segments))  # type: ignore[call-arg]

    def _remember(self, tokens: FastWeightTokens, mask: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._scan(tokens.values, tokens.query, tokens.key, self._log_decay(tokens, mask), memory)

    def _update(self, memory: Tensor, tokens: FastWeightTokens) -> Tensor:
        decay = self._log_decay(tokens, None).exp().to(memory.dtype)
        decay = decay if decay.dim() == 4 else decay.unsqueeze(-1)
        return decay * memory + outer(tokens.values.to(memory.dtype), tokens.key.to(memory.dtype))


def _positions(x: Tensor, mask: Tensor | None) -> Tensor:
    """Where each token stands among the real ones, ``(B, L)`` or (without a mask) ``(1, L)``."""
    if mask is None:
        return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    return mask.long().cumsum(-1) - 1


def in_a_row(x: Tensor, count: int) -> Tensor:
    """What each token has ``count`` of, side by side in the channels, one after the other: ``(B, L, n C)`` to
    ``(B, n L, C)``."""
    return x if count == 1 else x.unflatten(-1, (count, -1)).flatten(1, 2)


def repeated(marks: Tensor, count: int) -> Tensor:
    """A mask or segments ``(B, L)`` for ``count`` of every token, ``(B, n L)``."""
    return marks if count == 1 else marks.repeat_interleave(count, 1)


def outer(values: Tensor, key: Tensor) -> Tensor:
    """``v k^T`` of one token: ``(B, H, 1, W)`` and ``(B, H, 1, E)`` to ``(B, H, W, E)``."""
    return values.mT * key


def from_fla(*names: str) -> Callable[[FastWeights, dict[str, Tensor]], dict[str, Tensor]]:
    """Weights of flash-linear-attention: the projections stacked, in the order given, and those of ours renamed."""

    def convert(module: FastWeights, state: dict[str, Tensor]) -> dict[str, Tensor]:
        stacked = [f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", *names)]
        stacked = [name for name in stacked if name != "g_proj.weight" or module.sizes[1]]
        ours = {"in_proj.weight": torch.cat([state[name] for name in stacked])}
        if module.conv1d is not None:
            ours["conv1d.weight"] = torch.cat([state[f"{name}_conv1d.weight"] for name in "qkv"])
        norm = next(n for n in ("g_norm_swish_gate", "g_norm", "o_norm") if f"{n}.weight" in state)
        ours["norm.weight"] = state[f"{norm}.weight"]
        ours["out_proj.weight"] = state["o_proj.weight"]
        return ours

    return convert
