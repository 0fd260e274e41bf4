"""JustDense: the dense matrices of that study, with the wrapper that stood around them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.dense import Dense
from matmix.matrices.identity import Identity
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.registry import register
from matmix.ops import interpolate
from matmix.ops.layers import ShortConv
from matmix.ops.linear import linear
from matmix.ops.state_space import inner_width


@register(
    "justdense",
    matrix="Dense + Identity per head",
    cost="O(L^2 D)",
    source="Thrillcrazyer/JustDense",
    paper="2508.09153",
    smallest={"wrapper": "mamba", "d_conv": 3},
)
class JustDense(Mixer):
    """``y = v + M v / sqrt(L)`` with one free matrix a head, as the published study has it in place of other mixers.

    Two wrappers were published. In place of attention the matrix is applied to the tokens as they come: no queries,
    keys, values or output projection (``v = x``). In place of Mamba ``v = silu(conv(W x))``, and an output projection
    follows. M starts by Xavier's rule over three axes, at about 1 % of the identity beside it, and hardly trains: a
    model with it is close to one without a mixer, so have ``identity`` and ``dense`` beside it in a study.

    The published modules hold more weights, to which no gradient ever comes (a norm, a gate, in place of attention all
    projections); they are not here, and are left out of checkpoints that are loaded.

    Args:
        wrapper: in place of ``"attention"`` or of ``"mamba"``.
        heads: number of matrices; where absent half the model width, as published in most of its models (at least 1).
        expand: inner width over model width, of the Mamba wrapper.
        d_conv: taps of its centred convolution, odd (published: 1 in Mamba, 7 in S-Mamba).
    """

    traits = Traits(length="fixed", mask="content")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        wrapper: Literal["attention", "mamba"] = "attention",
        heads: int | None = None,
        expand: float = 2,
        d_conv: int = 7,
    ) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        inner = inner_width(dim, expand) if wrapper == "mamba" else dim
        self.heads = max(1, dim // 2) if heads is None else heads
        if inner % self.heads:
            raise ValueError(f"heads must be a positive divisor of the inner width {inner}, got {self.heads!r}")
        self.wrapper = wrapper
        length = math.prod(self.grid)
        self.M = nn.Parameter(torch.empty(self.heads, length, length))
        nn.init.xavier_normal_(self.M)
        if wrapper == "mamba":
            self.in_proj = nn.Linear(dim, inner, bias=False)
            self.conv1d = ShortConv(inner, d_conv, causal=False)
            self.out_proj = nn.Linear(inner, dim, bias=False)

    def project(self, x: Tensor, context: Context) -> Projected:
        x = drop_padding(x, context.mask)
        if self.wrapper == "mamba":
            x = drop_padding(F.silu(self.conv1d(linear(self.in_proj, x))), context.mask)
        values = split_heads(x.contiguous(), self.heads)
        return Projected(Dense(self.M.unsqueeze(0) * x.shape[1] ** -0.5) + Identity.like(values), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return merge_heads(mixed) if self.wrapper == "attention" else linear(self.out_proj, merge_heads(mixed))

    def resize_(self, grid: Grid) -> Self:
        """Interpolate ``M`` over rows and columns; the sum of a row of the mixing matrix stays what it was."""
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        moved = interpolate.mixing(self.M.detach(), old, self.grid)
        scale = (math.prod(self.grid) / math.prod(old)) ** 0.5
        self.M = nn.Parameter(moved * scale, self.M.requires_grad)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, wrapper={self.wrapper!r}, heads={self.heads}"

    @staticmethod
    def _from_published(module: JustDense, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``matrix_mixer.M`` and, behind Mamba's wrapper, the half of ``in_proj`` that is no gate."""
        state = {name.removeprefix("matrix_mixer."): value for name, value in state.items()}
        dead = {"norm.weight", "norm.bias"}
        if module.wrapper == "attention":
            dead |= {"in_proj.weight", "out_proj.weight"}
        else:
            state["in_proj.weight"] = state["in_proj.weight"].chunk(2)[1]
        return {name: value for name, value in state.items() if name not in dead}

    published: ClassVar[dict[str, Any]] = {"Thrillcrazyer/JustDense": _from_published}
