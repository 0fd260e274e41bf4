"""Hydra: a state space that reads both ways, as a quasiseparable matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.quasiseparable import Quasiseparable
from matmix.matrices.semiseparable import Semiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.linear import linear
from matmix.ops.state_space import add_dynamics, check_limit, head_width, initial_reading, inner_width, steps


@register(
    "hydra",
    matrix="Quasiseparable per head",
    cost="O(L D N + L D dim)",
    source="goombalab/hydra",
    paper="2407.09941, section 3",
    smallest={"d_state": 4, "head_dim": 4, "d_conv": 3},
)
class Hydra(Mixer):
    """Both triangles of the matrix are semiseparable, each one token late, around a diagonal of its own.

    As coded, not as in equation 3 of the paper, row i reads the state after token i - 1 (i + 1 on the way back) with
    the read-out vector of that token, so that neighbours meet without decay; the diagonal is ``D + fc_D x_i`` of all
    inner channels. Time and memory are linear in L. The end is not linear in the product: an RMS norm and a gate come
    before the output projection. Images are read row by row.

    Masks are exact, which the published layer is not: there the biases of the convolution fill padding again, and the
    way back starts in it.

    Args:
        expand: inner width over model width.
        d_state: state size N.
        d_conv: taps of the centred convolution, odd.
        head_dim: width W of a head; None is the largest divisor of ``expand * dim`` up to 64.
        groups: sets of B and C for each direction; each serves an equal share of the heads.
        learnable_init_states: a learned state at both ends; N more columns of the matrix read it.
        bias: biases of the input and output projections.
        conv_bias: bias of the convolution.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        dt_limit: bounds of a step.
        chunk: tokens of a chunk of the scan; None chooses. No result depends on it.
    """

    # Not aligned: the diagonal aside, a prefix lacks what its convolution would see behind its end.
    traits = Traits(data_dependent=True, mask="trim")
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
        d_state: int = 64,
        d_conv: int = 7,
        head_dim: int | None = None,
        groups: int = 1,
        learnable_init_states: bool = False,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        chunk: int | None = None,
    ) -> None:
        super().__init__(dim, grid)
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd, as the convolution is centred, got {d_conv!r}")
        inner = inner_width(dim, expand)
        self.head_dim = head_width(inner, head_dim, groups, "expand * dim")
        self.heads, self.groups = inner // self.head_dim, groups
        self.limit, self.chunk = check_limit(dt_limit), chunk
        shared = groups * d_state
        self.inner_sizes = (inner, shared, shared, shared, shared)  # x, B and C forward, B and C backward
        self.sizes = (inner, sum(self.inner_sizes), 2 * self.heads)

        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=bias)
        self.conv1d = ShortConv(self.sizes[1], d_conv, causal=False, bias=conv_bias)
        state = (self.head_dim, d_state) if learnable_init_states else None
        add_dynamics(self, self.heads, step=(dt_min, dt_max, dt_init_floor), state=state)
        self.fc_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        mask = context.mask
        gate, signal, raw = linear(self.in_proj, x).split(self.sizes, -1)
        signal = drop_padding(self.conv1d(drop_padding(signal, mask), silu=True), mask)
        tokens, *vectors = signal.split(self.inner_sizes, -1)
        values = split_heads(tokens, self.heads)
        in_f, out_f, in_b, out_b = (split_heads(v, self.groups) for v in vectors)

        lower, upper = triangles(self, (out_f, in_f), (out_b, in_b), raw, mask, self.limit, self.chunk)
        matrix: Matrix = Quasiseparable(lower, upper, (self.fc_D(tokens) + self.D).mT)
        if self.init_states is None:
            return Projected(matrix, values, gate)
        # Both ways start from the same state, and a row reads it one token late, as it does the tokens.
        reading = F.pad(initial_reading(out_f, lower.log_decay), (0, 0, 1, -1))
        back = initial_reading(out_b.flip(2), upper.log_decay.flip(2)).flip(2)
        reading = reading + F.pad(back, (0, 0, -1, 1))
        state = self.init_states.mT.to(values.dtype).expand(x.shape[0], -1, -1, -1)
        return Projected(ColumnCat((matrix, Dense(reading))), torch.cat((values, state), 2), gate)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.out_proj, self.norm(merge_heads(mixed), rest))

    published: ClassVar[dict[str, Callable[..., Any]]] = {"goombalab/hydra": lambda module, state: state}


class Dynamics(Protocol):
    """The parameters of ``add_dynamics`` that make steps and decays."""

    dt_bias: nn.Parameter  # (H,)
    A_log: nn.Parameter  # (H,)


def triangles(
    module: Dynamics,
    forth: tuple[Tensor, Tensor],
    back: tuple[Tensor, Tensor],
    raw: Tensor,
    mask: Tensor | None,
    limit: tuple[float, float] = (0.0, math.inf),
    chunk: int | None = None,
) -> tuple[Semiseparable, Semiseparable]:
    """Both triangles of Hydra's matrix, with one bias of the step and one rate a head for both directions.

    Args:
        module: has the bias and the rate.
        forth, back: C and B ``(B, G, L, N)`` of each direction.
        raw: steps before softplus ``(B, L, 2 H)``, forth and back.
        mask: ``(B, L)``; masked tokens have steps of 0.
        limit: bounds of a step.
        chunk: tokens of a chunk of the scan.
    """
    step = steps(raw, module.dt_bias.repeat(2), limit, mask)
    rate = -module.A_log.to(step.dtype).exp().view(-1, 1)
    both = (part.mT for part in step.split(len(module.A_log), -1))  # (B, H, L)
    lower, upper = (
        Semiseparable(*vectors, rate * part, part, chunk) for vectors, part in zip((forth, back), both, strict=True)
    )
    return lower, upper
