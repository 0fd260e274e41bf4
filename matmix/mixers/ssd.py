"""SSD: the Mamba-2 layer, a selective state space as a semiseparable matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import ColumnCat
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.semiseparable import Semiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.activations import silu
from matmix.ops.effective import tensor_of
from matmix.ops.gated import gated
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.linear import linear
from matmix.ops.masks import forgetting
from matmix.ops.precision import working_dtype
from matmix.ops.ssd import ssd_scan
from matmix.ops.state_space import add_dynamics, check_limit, head_width, initial_reading, inner_width, steps


class SSDState(NamedTuple):
    """What one token hands to the next."""

    window: Tensor  # (B, channels, d_conv): the last inputs of the short convolution
    memory: Tensor  # (B, H, W, N)


class _Parts(NamedTuple):
    """The projections of some tokens."""

    passed: tuple[Tensor, Tensor | None]  # gate (B, L, H*W); the part that goes by the mixing (B, L, D - H*W)
    signal: Tensor  # x B C before the convolution (B, L, channels)
    step: Tensor  # (B, L, H)


@register(
    "ssd",
    matrix="Semiseparable + Diagonal per head",
    cost="O(L D N + L D dim)",
    source="state-spaces/mamba",
    paper="2405.21060, equation 16 and section 7",
    smallest={"d_state": 4, "head_dim": 4, "d_conv": 3},
)
class SSD(Mixer):
    """Mamba-2: ``M[i, j] = C_i . B_j exp(A (dt_{j+1} + ... + dt_i)) dt_j + D [i = j]`` per head, on convolved values.

    B, C, dt and the values are functions of the token and of the few before it; A is one rate a head. Time and memory
    are linear in L; token by token the state is W x N numbers a head. The end is not linear in the product: a gated
    RMS norm comes before the output projection. Images are read row by row.

    Two published defects are not repeated. Masks: zeros at the input are not enough to pad, since biases fill them
    again before the scan. And with ``groups > 1`` Mamba2Simple normalises by groups or over all channels depending
    on its code path; here ``norm_groups`` says which.

    Args:
        expand: inner width over model width.
        d_state: state size N.
        d_conv: taps of the causal convolution.
        head_dim: width W of a head; None is the largest divisor of the mixed channels up to 64.
        groups: sets of B and C; each serves an equal share of the heads.
        d_ssm: channels that are mixed; the rest is a gated linear unit. None is all, ``expand * dim``.
        out_norm: the gated norm; without it the gate alone.
        norm_before_gate: order of the norm and the gate.
        norm_groups: groups of channels that are normalised by themselves; None is ``groups``, as in Mamba-2.
        D_per_channel: one skip factor a channel and not a head. It is then added after the product, as no matrix that
            the channels of a head share can hold it.
        learnable_init_states: a learned state before the first token; N more columns of the matrix read it.
        bias: biases of the input and output projections.
        conv_bias: bias of the convolution.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        dt_limit: bounds of a step.
        A_init_range: initial rates, uniform.
        chunk: tokens of a chunk of the scan; None chooses. No result depends on it.
    """

    traits = Traits(causal=True, data_dependent=True, mask="trim", recurrent=True, aligned=True, packed=True)
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter
    init_states: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 128,
        d_conv: int = 4,
        head_dim: int | None = None,
        groups: int = 1,
        d_ssm: int | None = None,
        out_norm: bool = True,
        norm_before_gate: bool = False,
        norm_groups: int | None = None,
        D_per_channel: bool = False,
        learnable_init_states: bool = False,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        A_init_range: tuple[float, float] = (1.0, 16.0),
        chunk: int | None = None,
    ) -> None:
        if learnable_init_states:  # the columns of the state stand behind those of the tokens, at any length
            # Nor do they start anew at the borders of packed sequences.
            self.traits = replace(type(self).traits, aligned=False, packed=False)
        super().__init__(dim, grid)
        inner = inner_width(dim, expand)
        mixed = inner if d_ssm is None else d_ssm
        if not 0 < mixed <= inner:
            raise ValueError(f"d_ssm must be 1 to expand * dim = {inner}, got {d_ssm!r}")
        self.head_dim = head_width(mixed, head_dim, groups, "expand * dim" if d_ssm is None else "d_ssm")
        self.heads, self.groups, self.d_state = mixed // self.head_dim, groups, d_state
        self.sizes = (inner - mixed, inner - mixed, mixed, mixed + 2 * groups * d_state, self.heads)
        self.limit, self.chunk, self.norm_before_gate = check_limit(dt_limit), chunk, norm_before_gate

        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=bias)
        self.conv1d = ShortConv(self.sizes[3], d_conv, bias=conv_bias)
        add_dynamics(
            self,
            self.heads,
            step=(dt_min, dt_max, dt_init_floor),
            rate=A_init_range,
            skips=mixed if D_per_channel else None,
            state=(self.head_dim, d_state) if learnable_init_states else None,
        )
        self.D_per_channel = D_per_channel
        norm_groups = groups if norm_groups is None else norm_groups
        if mixed % norm_groups:
            raise ValueError(f"norm_groups must divide the {mixed} channels that are normalised, got {norm_groups}")
        self.norm = GatedRMSNorm(mixed, norm_groups, gate_first=not norm_before_gate) if out_norm else None
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    # ------------------------------------------------------------------ tokens to matrix and values

    def _parts(self, x: Tensor, mask: Tensor | None) -> _Parts:
        beside_gate, beside, gate, signal, raw = linear(self.in_proj, x).split(self.sizes, -1)
        passed = gated(beside, beside_gate) if self.sizes[0] else None
        return _Parts((gate, passed), drop_padding(signal, mask), steps(raw, self.dt_bias, self.limit, mask))

    def _factors(self, signal: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(B, H, L, W)``, B and C ``(B, G, L, N)``."""
        shared = self.groups * self.d_state
        parts = drop_padding(signal, mask).split((self.heads * self.head_dim, shared, shared), -1)
        return tuple(split_heads(p, n) for p, n in zip(parts, (self.heads, self.groups, self.groups), strict=True))  # type: ignore[return-value]

    def _log_decay(self, step: Tensor) -> Tensor:
        return -self.A_log.to(step.dtype).exp() * step

    def project(self, x: Tensor, context: Context) -> Projected:
        parts = self._parts(x, context.mask)
        apart = {} if context.segments is None else {"segments": context.segments}
        values, inputs, outputs = self._factors(self.conv1d(parts.signal, silu=True, **apart), context.mask)
        step = parts.step.mT
        log_decay = forgetting(self._log_decay(parts.step).mT, context.segments)
        matrix: Matrix = Semiseparable(outputs, inputs, log_decay, step, self.chunk)
        if not self.D_per_channel:
            matrix = matrix + Diagonal(self.D.view(1, -1, 1).expand(1, -1, x.shape[1]))
        rest = (*parts.passed, values if self.D_per_channel else None)
        if self.init_states is None:
            return Projected(matrix, values, rest)
        matrix = ColumnCat((matrix, Dense(initial_reading(outputs, log_decay))))
        state = self.init_states.mT.to(values.dtype).expand(x.shape[0], -1, -1, -1)
        return Projected(matrix, torch.cat((values, state), 2), rest)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        gate, passed, values = rest
        y = merge_heads(mixed)
        if values is not None:
            y = y + self.D * merge_heads(values)
        y = gated(y, gate) if self.norm is None else self.norm(y, gate)
        return linear(self.out_proj, y if passed is None else torch.cat((passed, y), -1))

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> SSDState:
        weight = tensor_of(self.in_proj, self)
        window = weight.new_zeros(batch, self.sizes[3], self.conv1d.size)
        dtype = working_dtype(weight)
        if self.init_states is not None:
            return SSDState(window, self.init_states.to(dtype).expand(batch, -1, -1, -1))
        return SSDState(window, weight.new_zeros(batch, self.heads, self.head_dim, self.d_state, dtype=dtype))

    def absorb(self, x: Tensor, mask: Tensor | None, state: SSDState | None) -> tuple[Tensor, SSDState]:
        parts = self._parts(x, mask)
        signal, window = self.conv1d.absorb(parts.signal, mask, None if state is None else state.window, silu=True)
        values, inputs, outputs = self._factors(signal, mask)
        log_decay = self._log_decay(parts.step).mT
        start = None if self.init_states is None else self.init_states.unsqueeze(0)
        start = start if state is None else state.memory
        mixed, memory = ssd_scan(values, outputs, inputs, log_decay, parts.step.mT, initial=start, chunk=self.chunk)
        return self._finish(mixed, values, parts.passed), SSDState(window, memory)

    def advance(self, x: Tensor, state: SSDState) -> tuple[Tensor, SSDState]:
        parts = self._parts(x.unsqueeze(1), None)
        convolved, window = self.conv1d.step(parts.signal.squeeze(1), state.window.to(parts.signal.dtype))
        values, inputs, outputs = self._factors(silu(convolved).unsqueeze(1), None)
        # One token: (B, H, W) written by (B, H, N), read by (B, H, N).
        dtype, share = parts.step.dtype, self.heads // self.groups
        step = parts.step.squeeze(1)
        write, read = (t.squeeze(2).to(dtype).repeat_interleave(share, 1) for t in (inputs, outputs))
        new = (step.unsqueeze(-1) * values.squeeze(2)).unsqueeze(-1) * write.unsqueeze(2)
        memory = self._log_decay(step).exp()[..., None, None] * state.memory + new
        mixed = (memory * read.unsqueeze(2)).sum(-1).unsqueeze(2)
        return self._finish(mixed, values, parts.passed).squeeze(1), SSDState(window, memory)

    def _finish(self, mixed: Tensor, values: Tensor, passed: tuple[Tensor, Tensor | None]) -> Tensor:
        """The skip, which the matrix holds in ``project``, and the end."""
        mixed = mixed.to(values.dtype)
        if self.D_per_channel:
            return self.merge(mixed, (*passed, values))
        return self.merge(mixed + self.D.to(mixed.dtype).view(-1, 1, 1) * values, (*passed, None))

    published: ClassVar[dict[str, Callable[..., Any]]] = {"state-spaces/mamba": lambda module, state: state}
