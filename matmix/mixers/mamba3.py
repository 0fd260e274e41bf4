"""Mamba-3: a state space with trapezoidal steps and rotating states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Product, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.convolution import Convolution
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.semiseparable import Semiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.effective import exactly, tensor_of
from matmix.ops.gated import gated
from matmix.ops.layers import GatedRMSNorm
from matmix.ops.linear import linear
from matmix.ops.masks import forgetting, padding_before
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.ssd import ssd_scan
from matmix.ops.state_space import head_width, initial_reading, inner_width, step_bias, steps


class Mamba3State(NamedTuple):
    """What one token hands to the next."""

    angle: Tensor  # (B, H, S), modulo 2 pi
    memory: Tensor  # (B, H, W, N)
    key: Tensor  # (B, H, N): the last token's B, rotated
    value: Tensor  # (B, H, W): its value


class _Parts(NamedTuple):
    """The projections of some tokens."""

    values: Tensor  # (B, H, L, W)
    gate: Tensor  # (B, L, D)
    inputs: Tensor  # B before the rotation, (B, H, L, N)
    outputs: Tensor  # C, the same
    step: Tensor  # dt, (B, H, L)
    log_decay: Tensor  # A dt, (B, H, L)
    now: Tensor  # the share of dt with which a token is written as it comes, (B, H, L)
    turn: Tensor  # of the states in this step, (B, H, L, S)


@register(
    "mamba3",
    matrix="shifted Semiseparable + Diagonal per head",
    cost="O(L D N + L D dim)",
    source="state-spaces/mamba",
    paper="2603.15569, section 3 (as coded in mamba-ssm 2.3, one input and output)",
    smallest={"d_state": 4, "head_dim": 4},
)
class Mamba3(Mixer):
    """``y_i = C_i . S_i + D v_i``, ``S_i = a_i S_{i-1} + (1 - t_i) dt_i a_i B_{i-1} v_{i-1} + t_i dt_i B_i v_i``.

    A step is a trapezoid with learned halves t (Mamba-2 has t = 1), ``a = exp(A dt)`` with A of the token, and B and C
    are normalised, shifted by a bias of the head and rotated pair by pair by angles that add up over the tokens:
    states that turn, as with complex decays. There is no short convolution. Written out, token j reaches row i > j by

        M[i, j] = C_i . B_j exp(A dt_{j+1} + ... + A dt_i) (t_j dt_j + (1 - t_{j+1}) dt_{j+1})

    and its own row by ``C_i . B_i t_i dt_i + D``: a semiseparable matrix moved down by one row, and a diagonal.
    Time and memory are linear in L. Masks are exact for padding at either end; images are read row by row.

    This is the published layer with one input and one output a head (``is_mimo=False``). Its several (MIMO) exist as
    GPU kernels alone, without a reference, and are left out.

    Args:
        expand: inner width over model width.
        d_state: state size N.
        head_dim: width W of a head; None is the largest divisor of ``expand * dim`` up to 64.
        groups: sets of B and C; each serves an equal share of the heads.
        rope_fraction: share of the states that turn, 0.5 or 1.
        out_norm: RMS norm of every head before the gate; the end is then not linear in the product.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        A_floor: the smallest rate.
        chunk: tokens of a chunk of the scan; None chooses. No result depends on it.
    """

    traits = Traits(causal=True, data_dependent=True, mask="trim", recurrent=True, aligned=True, packed=True)
    undecayed: ClassVar[frozenset[str]] = frozenset({"dt_bias", "D"})

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 128,
        head_dim: int | None = None,
        groups: int = 1,
        rope_fraction: float = 0.5,
        out_norm: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        A_floor: float = 1e-4,
        chunk: int | None = None,
    ) -> None:
        super().__init__(dim, grid)
        if rope_fraction not in (0.5, 1.0):
            raise ValueError(f"rope_fraction must be 0.5 or 1.0, got {rope_fraction!r}")
        self.angles = int(d_state * rope_fraction) // 2
        if self.angles < 1 or d_state % 2:
            raise ValueError(f"d_state must be even, and d_state * rope_fraction at least 2, got d_state={d_state!r}")
        inner = inner_width(dim, expand)
        self.head_dim = head_width(inner, head_dim, groups, "expand * dim")
        self.heads, self.groups, self.d_state = inner // self.head_dim, groups, d_state
        self.floor, self.chunk = A_floor, chunk
        shared, heads = groups * d_state, self.heads
        self.sizes = (inner, inner, shared, shared, heads, heads, heads, self.angles)

        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(step_bias(heads, dt_min, dt_max, dt_init_floor))
        self.B_bias = nn.Parameter(torch.ones(heads, 1, d_state))
        self.C_bias = nn.Parameter(torch.ones(heads, 1, d_state))
        self.B_norm, self.C_norm = (nn.RMSNorm(d_state, eps=1e-5) for _ in range(2))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, heads) if out_norm else None
        self.out_proj = nn.Linear(inner, dim, bias=False)

    # ------------------------------------------------------------------ tokens to matrix and values

    def _parts(self, projected: Tensor, mask: Tensor | None) -> _Parts:
        gate, tokens, inputs, outputs, raw, rate, share, angles = projected.split(self.sizes, -1)
        step = steps(raw, self.dt_bias, (0.0, math.inf), mask)  # 0 where masked: nothing decays, turns or is written
        dtype = step.dtype
        # 1 + r above 0 and 1 / (1 - r) below: positive and smooth
        rate = rate.to(dtype)
        rate = (rate.clamp(min=0) + 1 / (1 - rate.clamp(max=0))).clamp(min=self.floor)
        turn = (math.pi * torch.tanh(angles.to(dtype))).unsqueeze(2) * step.unsqueeze(-1)  # (B, L, H, S)
        vectors = [
            exactly(norm, part.unflatten(-1, (self.groups, self.d_state))).to(dtype)
            for norm, part in ((self.B_norm, inputs), (self.C_norm, outputs))
        ]
        inputs, outputs = (
            v.transpose(1, 2).repeat_interleave(self.heads // self.groups, 1) + bias
            for v, bias in zip(vectors, (self.B_bias, self.C_bias), strict=True)
        )
        values = split_heads(drop_padding(tokens, mask), self.heads)
        now = torch.sigmoid(share.to(dtype)).mT
        return _Parts(values, gate, inputs, outputs, step.mT, -(rate * step).mT, now, turn.transpose(1, 2))

    def _later(self, parts: _Parts) -> Tensor:
        """What a token is written with when the next one comes, over the decay of that step: ``(B, H, L)``."""
        return F.pad((1 - parts.now) * parts.step, (-1, 1))

    def project(self, x: Tensor, context: Context) -> Projected:
        projected = linear(self.in_proj, x)
        with full_precision(x.device):
            parts = self._parts(projected, context.mask)
            kept = forgetting(parts.log_decay, context.segments)
            parts = _Parts(
                parts.values, parts.gate, parts.inputs, parts.outputs, parts.step, kept, parts.now, parts.turn
            )
            matrix = self._matrix(parts, *self._turned(parts))
        return Projected(matrix, parts.values, parts.gate)

    def _turned(self, parts: _Parts, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Angles ``(B, H, L, S)`` that follow on those of ``start (B, H, S)``, and B and C turned by them."""
        total = parts.turn.double().cumsum(2)
        angle = _wrapped(total if start is None else total + start.unsqueeze(2)).to(parts.turn.dtype)
        return angle, _rotated(parts.inputs, angle), _rotated(parts.outputs, angle)

    def _matrix(self, parts: _Parts, angle: Tensor, inputs: Tensor, outputs: Tensor) -> Matrix:
        written = parts.now * parts.step
        # Row i - 1 of the matrix below reads what row i must: with the vector of token i, one decay later.
        ahead = F.pad(outputs * parts.log_decay.exp().unsqueeze(-1), (0, 0, -1, 1))
        own = (parts.outputs * parts.inputs).sum(-1) * written + self.D.to(written.dtype).unsqueeze(-1)
        below = Semiseparable(ahead, inputs, parts.log_decay, written + self._later(parts), self.chunk)
        down = Convolution.causal(below.outputs.new_tensor([[1.0, 0.0]]), inputs.shape[2])
        return Sum((Product((down, below)), Diagonal(own)))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        y = merge_heads(mixed)
        return linear(self.out_proj, gated(y, rest) if self.norm is None else self.norm(y, rest))

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> Mamba3State:
        weight = tensor_of(self.in_proj, self)
        like: dict[str, Any] = {"dtype": working_dtype(weight), "device": weight.device}
        sizes = ((self.angles,), (self.head_dim, self.d_state), (self.d_state,), (self.head_dim,))
        return Mamba3State(*(torch.zeros(batch, self.heads, *size, **like) for size in sizes))

    def absorb(self, x: Tensor, mask: Tensor | None, state: Mamba3State | None) -> tuple[Tensor, Mamba3State]:
        projected = linear(self.in_proj, x)
        with full_precision(x.device):
            parts = self._parts(projected, mask)
            angle, inputs, outputs = self._turned(parts, None if state is None else state.angle)
            mixed = self._matrix(parts, angle, inputs, outputs).matmul(parts.values)
            key, value = inputs[:, :, -1], parts.values[:, :, -1].to(inputs.dtype)
            start = None
            if state is not None:
                # The second half of the token before is written with the first token's step.
                late = (1 - parts.now) * parts.step
                if mask is None:
                    late = late[..., :1]
                else:
                    first = padding_before(mask).clamp(max=x.shape[1] - 1)
                    late = late.gather(2, first.view(-1, 1, 1).expand(-1, self.heads, 1))
                    some = mask.any(1)[:, None, None]  # without a real token, the one before stays the last
                    key, value = torch.where(some, key, state.key), torch.where(some, value, state.value)
                start = state.memory + (late * state.value).unsqueeze(-1) * state.key.unsqueeze(-2)
                mixed = mixed + (initial_reading(outputs, parts.log_decay) @ start.mT).to(mixed.dtype)
            # After the last token its second half is still to come: the weights of the others are complete.
            written = parts.now * parts.step + self._later(parts)
            blank = torch.zeros_like(inputs)
            _, memory = ssd_scan(parts.values, blank, inputs, parts.log_decay, written, initial=start, chunk=self.chunk)
        return self.merge(mixed, parts.gate), Mamba3State(angle[:, :, -1], memory, key, value)

    def advance(self, x: Tensor, state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        parts = self._parts(self.in_proj(x).unsqueeze(1), None)
        angle = _wrapped(state.angle + parts.turn.squeeze(2))
        write, read = (_rotated(p.squeeze(2), angle) for p in (parts.inputs, parts.outputs))
        value = parts.values.squeeze(2).to(write.dtype)
        step, now = parts.step, parts.now  # (B, H, 1)
        decay = parts.log_decay.exp()
        before = (((1 - now) * step * decay) * state.value).unsqueeze(-1) * state.key.unsqueeze(-2)
        new = (now * step * value).unsqueeze(-1) * write.unsqueeze(-2)
        memory = decay.unsqueeze(-1) * state.memory + before + new
        mixed = (memory @ read.unsqueeze(-1)).squeeze(-1) + self.D.unsqueeze(-1) * value
        out = self.merge(mixed.to(x.dtype).unsqueeze(2), parts.gate).squeeze(1)
        return out, Mamba3State(angle, memory, write, value)

    published: ClassVar[dict[str, Callable[..., Any]]] = {"state-spaces/mamba": lambda module, state: state}


def _wrapped(angle: Tensor) -> Tensor:
    """An angle between 0 and 2 pi, where cosines are exact."""
    return angle - 2 * math.pi * torch.floor(angle / (2 * math.pi)).detach()


def _rotated(vectors: Tensor, angle: Tensor) -> Tensor:
    """Neighbours of ``(..., N)`` as points of a plane, the first S of them turned by ``(..., S)``."""
    turned, still = vectors.split((2 * angle.shape[-1], vectors.shape[-1] - 2 * angle.shape[-1]), -1)
    first, second = turned.unflatten(-1, (angle.shape[-1], 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2)
    return torch.cat((turned, still), -1) if still.shape[-1] else turned
