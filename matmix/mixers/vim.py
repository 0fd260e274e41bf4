"""Vim: Mamba read both ways, each way with a convolution and a selection of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import ColumnCat
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.diagonal_semiseparable import DiagonalSemiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.mixers.s6 import inner_sizes, select, skips, spectrum
from matmix.ops.gated import gated
from matmix.ops.layers import ShortConv
from matmix.ops.linear import linear
from matmix.ops.orders import scan_order
from matmix.ops.state_space import step_bias


@register(
    "vim",
    matrix="[DiagonalSemiseparable + Diagonal, the same from the other end] per channel",
    cost="O(L D N + L D dim), element by element",
    source="hustvl/Vim",
    paper="2401.09417, algorithm 1",
    smallest={"d_state": 3, "d_conv": 3, "expand": 1},
)
class Vim(Mixer):
    """Bidirectional Mamba, ``bimamba v2``: ``y = [M_f + D_f, P^T (M_b + D_b) P] [v_f; v_b]`` per channel, P reversal.

    Both ways see the same signal, through causal convolutions of their own (the one of the way back sees what comes
    after the token), and have selections, rates and skips of their own: two streams of values, hence a row of two
    blocks. The gate and the output projection are common. Masks are exact; images are read row by row.

    Args:
        expand: inner width D over model width.
        d_state: state size N.
        d_conv: taps of each convolution.
        dt_rank: rank of the projections to steps; None is ``ceil(dim / 16)``.
        divide: half the sum of the two ways, as in the published models (the code's own default is the sum).
        conv_bias: biases of the convolutions.
        bias: biases of the input and output projections.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        dt_scale: scale of the initial projections to steps.
        chunk: tokens of a chunk of the scans; None chooses. No result depends on it.
    """

    traits = Traits(data_dependent=True, mask="trim")
    undecayed: ClassVar[frozenset[str]] = frozenset({"A_log", "A_b_log", "D", "D_b"})

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | None = None,
        divide: bool = True,
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
        self.divide, self.chunk = divide, chunk
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv1d, self.conv1d_b = (ShortConv(inner, d_conv, bias=conv_bias) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(inner, rank + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(rank, inner) for _ in range(2))
        self.A_log, self.A_b_log = spectrum(inner, d_state), spectrum(inner, d_state)
        self.D, self.D_b = skips(inner), skips(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        with torch.no_grad():
            # The published code leaves the way back to the draw of nn.Linear, whose steps start about ten times as
            # long; here both ways start alike.
            for layer in (self.dt_proj, self.dt_proj_b):
                layer.weight.uniform_(-dt_scale * rank**-0.5, dt_scale * rank**-0.5)
                layer.bias.copy_(step_bias(inner, dt_min, dt_max, dt_init_floor))

    def _way(
        self, signal: Tensor, mask: Tensor | None, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> tuple[Matrix, Tensor]:
        """The matrix and the values of one way, in its own order."""
        values = drop_padding(signal, mask)
        selected = select(values, x_proj, dt_proj, A_log.shape[1], mask)
        matrix = DiagonalSemiseparable(*selected.factors(A_log), chunk=self.chunk)
        return matrix + Diagonal(D.view(1, -1, 1).expand(1, -1, values.shape[1])), values

    def project(self, x: Tensor, context: Context) -> Projected:
        signal, gate = linear(self.in_proj, x).chunk(2, -1)
        signal = drop_padding(signal, context.mask)
        mask_b = None if context.mask is None else context.mask.flip(1)
        ahead, values = self._way(
            self.conv1d(signal, silu=True), context.mask, self.x_proj, self.dt_proj, self.A_log, self.D
        )
        back, values_b = self._way(
            self.conv1d_b(signal.flip(1), silu=True), mask_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
        )
        reverse = scan_order("rows_back", (x.shape[1],), x.device)
        streams = torch.cat((values, values_b.flip(1)), 1)
        return Projected(ColumnCat((ahead, back.permuted(reverse))), streams.mT.unsqueeze(-1), gate)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        y = gated(mixed.squeeze(-1).mT, rest)
        return linear(self.out_proj, y / 2 if self.divide else y)

    published: ClassVar[dict[str, Callable[..., Any]]] = {"hustvl/Vim": lambda module, state: state}
