"""S6: the Mamba-1 layer, a selective state space with rates of its own for every channel and state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.diagonal_semiseparable import DiagonalSemiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.ops.diagonal_scan import diagonal_scan
from matmix.ops.effective import tensor_of
from matmix.ops.gated import gated
from matmix.ops.gpu import in_triton
from matmix.ops.layers import ShortConv
from matmix.ops.linear import linear
from matmix.ops.masks import forgetting
from matmix.ops.plain import is_plain
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.state_space import inner_width, step_bias, steps


class S6State(NamedTuple):
    """What one token hands to the next."""

    window: Tensor  # (B, D, d_conv): the last inputs of the short convolution
    memory: Tensor  # (B, D, N)


class Selected(NamedTuple):
    """What D channels of some tokens select for their scan."""

    inputs: Tensor  # B, (B, L, N)
    outputs: Tensor  # C, (B, L, N)
    step: Tensor  # (B, L, D)

    def factors(self, A_log: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """C, B, rates, clock and step of a ``DiagonalSemiseparable`` with the rates ``exp(A_log)``, (D, N).

        The clock of the decays and the weight of what is written are both dt, but that between ``segments (B, L)`` the
        clock runs for ages: infinity would make the rates' gradient NaN.
        """
        step = self.step.mT
        rates = -A_log.to(step.dtype).exp()
        clock = step if segments is None else -forgetting(-step, segments).clamp(min=-1e30)
        return self.outputs.unsqueeze(1), self.inputs.unsqueeze(1), rates[None, :, None, :], clock, step

    def ordered(self, index: Tensor) -> Selected:
        """The tokens in another order, ``index`` (L,)."""
        return Selected(*(part.index_select(1, index) for part in self))


def select(values: Tensor, x_proj: nn.Module, dt_proj: nn.Module, states: int, mask: Tensor | None) -> Selected:
    """The selection of S6 (2312.00752, algorithm 2).

    Args:
        values: convolved tokens ``(B, L, D)`` (or one, ``(B, D)``).
        x_proj: a layer from D to steps of low rank, B and C, R + 2 N.
        dt_proj: a layer from the low rank R to the steps of D channels.
        states: N.
        mask: ``(B, L)``; a masked token has a step of 0.
    """
    inputs, outputs, raw, bias = projected(values, x_proj, dt_proj, states)
    return Selected(inputs, outputs, steps(raw, bias, (0.0, math.inf), mask))


def projected(
    values: Tensor, x_proj: nn.Module, dt_proj: nn.Module, states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """B, C, and what softplus turns into steps in two parts that are yet to be added: ``(B, L, D)`` and ``(D,)``.

    The bias of a layer is added to the steps in float32, as published; what is more than a layer is called, and its
    bias is in the first part.
    """
    low = linear(x_proj, values)
    low, inputs, outputs = low.split((low.shape[-1] - 2 * states, states, states), -1)
    if is_plain(dt_proj, nn.Linear) and dt_proj.bias is not None:
        return inputs, outputs, F.linear(low, dt_proj.weight), dt_proj.bias
    raw = dt_proj(low)
    return inputs, outputs, raw, raw.new_zeros(raw.shape[-1:])


def _matrix(
    inputs: Tensor,
    outputs: Tensor,
    raw: Tensor,
    bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    *,
    mask: Tensor | None,
    segments: Tensor | None,
    chunk: int | None,
) -> Matrix:
    selected = Selected(inputs, outputs, steps(raw, bias, (0.0, math.inf), mask))
    skip = Diagonal(D.view(1, -1, 1).expand(1, -1, raw.shape[1]))
    return DiagonalSemiseparable(*selected.factors(A_log, segments), chunk=chunk) + skip


def _product(values: Tensor, given: tuple[Tensor, ...], chunk: int | None) -> Tensor:
    """The product with that matrix, unmasked, by one kernel for the scan and all around it."""
    from matmix.ops.diagonal_scan_triton import select_scan

    with full_precision(values.device):
        inputs, outputs, raw, bias, A_log, D = (t.float() for t in given)
        mixed = select_scan(
            values.float(), outputs.unsqueeze(1), inputs.unsqueeze(1), A_log, raw.mT, bias, D, chunk=chunk
        )
    return mixed.to(values.dtype)


def spectrum(channels: int, d_state: int) -> nn.Parameter:
    """``A_log`` of S4D-Real, the logs of 1 to N for every channel."""
    return nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(channels, 1))


def skips(channels: int) -> nn.Parameter:
    """D, ones."""
    return nn.Parameter(torch.ones(channels))


def inner_sizes(dim: int, expand: float, dt_rank: int | None) -> tuple[int, int]:
    """Inner width and the rank of the steps, ``ceil(dim / 16)`` where None is asked for."""
    return inner_width(dim, expand), math.ceil(dim / 16) if dt_rank is None else dt_rank


@register(
    "s6",
    matrix="DiagonalSemiseparable + Diagonal per channel",
    cost="O(L D N + L D dim), element by element",
    source="state-spaces/mamba",
    paper="2312.00752, algorithm 2",
    smallest={"d_state": 3, "d_conv": 3, "expand": 1},
)
class S6(Mixer):
    """Mamba: per channel c, ``M[i, j] = sum_n C_i[n] exp(A[c, n] (dt_{j+1} + ... + dt_i)) B_j[n] dt_j`` and D[c] on
    the diagonal, on convolved values.

    B and C are shared by all channels, the steps dt are the channel's own; all are functions of the token. B is
    discretised by Euler's rule, as in the published code, not by the formula of the paper's equation 4. Time and
    memory are linear in L; token by token the state is N numbers a channel. Masks are exact. Images are read row by
    row.

    Args:
        expand: inner width D over model width.
        d_state: state size N.
        d_conv: taps of the causal convolution.
        dt_rank: rank of the projection to steps; None is ``ceil(dim / 16)``.
        conv_bias: bias of the convolution.
        bias: biases of the input and output projections.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        dt_scale: scale of the initial projection to steps.
        chunk: tokens of a chunk of the scan; None chooses. No result depends on it.
    """

    traits = Traits(causal=True, data_dependent=True, mask="trim", recurrent=True, aligned=True, packed=True)
    undecayed: ClassVar[frozenset[str]] = frozenset({"A_log", "D"})

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_scale: float = 1.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(dim, grid)
        inner, rank = inner_sizes(dim, expand, dt_rank)
        self.inner, self.d_state, self.chunk = inner, d_state, chunk

        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv1d = ShortConv(inner, d_conv, bias=conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = spectrum(inner, d_state)
        self.D = skips(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-dt_scale * rank**-0.5, dt_scale * rank**-0.5)
            self.dt_proj.bias.copy_(step_bias(inner, dt_min, dt_max, dt_init_floor))

    def project(self, x: Tensor, context: Context) -> Projected:
        values, given, gate = self._given(x, context)
        return Projected(self._matrix(given, context), values, gate)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        values, given, gate = self._given(x, context)
        if context.mask is context.segments is None and in_triton(values, *given):
            return _product(values, given, self.chunk), gate
        return self._matrix(given, context).matmul(values), gate

    def _matrix(self, given: tuple[Tensor, ...], context: Context) -> Matrix:
        return _matrix(*given, mask=context.mask, segments=context.segments, chunk=self.chunk)

    def _given(self, x: Tensor, context: Context) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Values, what their matrix is made from, and the gate."""
        mask, segments = context.mask, context.segments
        signal, gate = linear(self.in_proj, x).chunk(2, -1)
        apart = {} if segments is None else {"segments": segments}
        tokens = drop_padding(self.conv1d(drop_padding(signal, mask), silu=True, **apart), mask)
        given = (*projected(tokens, self.x_proj, self.dt_proj, self.d_state), self.A_log, self.D)
        return tokens.mT.unsqueeze(-1), given, gate

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.out_proj, gated(mixed.squeeze(-1).mT, rest))

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> S6State:
        weight = tensor_of(self.in_proj, self)
        window = weight.new_zeros(batch, self.inner, self.conv1d.size)
        return S6State(window, weight.new_zeros(batch, self.inner, self.d_state, dtype=working_dtype(weight)))

    def absorb(self, x: Tensor, mask: Tensor | None, state: S6State | None) -> tuple[Tensor, S6State]:
        signal, gate = self.in_proj(x).chunk(2, -1)
        window, memory = (None, None) if state is None else (state.window, state.memory.unsqueeze(2))
        signal, window = self.conv1d.absorb(drop_padding(signal, mask), mask, window, silu=True)
        tokens = drop_padding(signal, mask)
        selected = select(tokens, self.x_proj, self.dt_proj, self.d_state, mask)
        values = tokens.mT.unsqueeze(-1)
        mixed, memory = diagonal_scan(values, *selected.factors(self.A_log), initial=memory, chunk=self.chunk)
        out = self.merge(mixed.to(values.dtype) + self.D.view(-1, 1, 1) * values, gate)
        return out, S6State(window, memory.squeeze(2))

    def advance(self, x: Tensor, state: S6State) -> tuple[Tensor, S6State]:
        signal, gate = self.in_proj(x).chunk(2, -1)
        convolved, window = self.conv1d.step(signal, state.window.to(signal.dtype))
        values = F.silu(convolved)  # (B, D)
        # (B, N), (B, N), (B, D)
        inputs, outputs, step = select(values, self.x_proj, self.dt_proj, self.d_state, None)
        decay = (-self.A_log.to(step.dtype).exp() * step.unsqueeze(-1)).exp()
        memory = decay * state.memory + (step * values).unsqueeze(-1) * inputs.unsqueeze(1)
        mixed = (memory * outputs.unsqueeze(1)).sum(-1).to(values.dtype)
        return self.out_proj(gated(mixed + self.D * values, gate)), S6State(window, memory)

    published: ClassVar[dict[str, Callable[..., Any]]] = {"state-spaces/mamba": lambda module, state: state}
