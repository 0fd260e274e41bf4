"""SS2D: one image, several scans; the token mixer of VMamba."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.diagonal_semiseparable import DiagonalSemiseparable
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.mixers.s6 import Selected, inner_sizes, skips, spectrum
from matmix.ops.depthwise import conv
from matmix.ops.gated import gated
from matmix.ops.layout import image_of
from matmix.ops.linear import linear
from matmix.ops.orders import CROSS, check_orders, scan_order
from matmix.ops.state_space import step_bias, steps


@register(
    "ss2d",
    matrix="sum of P^T DiagonalSemiseparable P over the scans + Diagonal, per channel",
    cost="O(K L D N + L D dim) for K scans, element by element",
    source="MzeroMiko/VMamba",
    paper="2401.10166, section 4.2",
    smallest={"d_state": 2, "expand": 1},
)
class SS2D(Mixer):
    """``M = sum_k P_k^T M_k P_k + D``: scans of Mamba along several orders of the tokens, on one V.

    V comes from a depthwise convolution over the image; each scan has a selection, rates and skips of its own. The
    sum is layer-normalised before the gate and the output projection, so the end is not linear in the product. A
    sequence is an image of one row. Masks are exact on sequences.

    Args:
        expand: inner width D over model width (VMamba's ``ssm_ratio``).
        d_state: state size N; 16 in VMamba's v0, 1 in its faster models.
        d_conv: taps of the convolution along each axis, odd.
        dt_rank: rank of the projections to steps; None is ``ceil(dim / 16)``.
        out_gate: whether the product is gated; without is VMamba's ``noz``.
        out_norm: whether the product is normalised.
        orders: the scans, of ``matmix.ops.orders.ORDERS``; as default rows and columns, forward and back.
        conv_bias: bias of the convolution.
        bias: biases of the input and output projections.
        dt_min, dt_max, dt_init_floor: initial steps, log-uniform.
        dt_scale: scale of the initial projections to steps.
        chunk: tokens of a chunk of the scans; None chooses. No result depends on it.
    """

    traits = Traits(data_dependent=True, mask="trim")
    undecayed: ClassVar[frozenset[str]] = frozenset({"A_logs", "Ds"})

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 16,
        d_conv: int = 3,
        dt_rank: int | None = None,
        out_gate: bool = True,
        out_norm: bool = True,
        orders: tuple[str, ...] = CROSS,
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
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd, as the convolution is centred, got {d_conv!r}")
        self.inner, self.out_gate, self.chunk = inner, out_gate, chunk
        self.orders = check_orders(orders)
        scans = len(self.orders)

        self.in_proj = nn.Linear(dim, (2 if out_gate else 1) * inner, bias=bias)
        self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        bound = inner**-0.5  # as nn.Linear draws them
        self.x_proj_weight = nn.Parameter(torch.empty(scans, rank + 2 * d_state, inner).uniform_(-bound, bound))
        bound = dt_scale * rank**-0.5
        self.dt_projs_weight = nn.Parameter(torch.empty(scans, inner, rank).uniform_(-bound, bound))
        bias_of_steps = step_bias(scans * inner, dt_min, dt_max, dt_init_floor)
        self.dt_projs_bias = nn.Parameter(bias_of_steps.view(scans, inner))
        self.A_logs, self.Ds = spectrum(scans * inner, d_state), skips(scans * inner)
        self.out_norm = nn.LayerNorm(inner) if out_norm else None
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        mask, grid = context.mask, context.grid
        signal, *gate = linear(self.in_proj, x).split(self.inner, -1)
        image = image_of(drop_padding(signal, mask), grid)
        image = conv(self.conv2d, image, silu=True)
        values = drop_padding(image.flatten(2).mT, mask)
        weights = zip(self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, strict=True)
        rates = self.A_logs.unflatten(0, (len(self.orders), self.inner))
        states = self.A_logs.shape[1]
        terms: list[Matrix] = []
        for order, (x_proj, dt_proj, dt_bias), A_log in zip(self.orders, weights, rates, strict=True):
            index = scan_order(order, grid, x.device)
            low, inputs, outputs = F.linear(values, x_proj).split((dt_proj.shape[1], states, states), -1)
            step = steps(F.linear(low, dt_proj), dt_bias, (0.0, math.inf), mask)
            selected = Selected(inputs, outputs, step).ordered(index)
            terms.append(DiagonalSemiseparable(*selected.factors(A_log), chunk=self.chunk).permuted(index))
        skip = self.Ds.view(len(self.orders), self.inner).sum(0)
        terms.append(Diagonal(skip.view(1, -1, 1).expand(1, -1, x.shape[1])))
        return Projected(Sum(tuple(terms)), values.mT.unsqueeze(-1), gate[0] if gate else None)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        y = mixed.squeeze(-1).mT
        y = y if self.out_norm is None else self.out_norm(y)
        return linear(self.out_proj, y if rest is None else gated(y, rest))

    @staticmethod
    def _from_published(module: SS2D, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Channels-first models keep their projections as 1 x 1 convolutions.
        return {name: value.flatten(1) if name.endswith("_proj.weight") else value for name, value in state.items()}

    published: ClassVar[dict[str, Callable[..., Any]]] = {"MzeroMiko/VMamba": _from_published}
