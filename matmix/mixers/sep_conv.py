"""Separable convolution: an inverted bottleneck with a depthwise convolution in the middle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.matrices.convolution import Convolution
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, drop_padding, merge_heads
from matmix.mixers.calls import check_axes
from matmix.mixers.registry import register
from matmix.ops.depthwise import conv, convolve
from matmix.ops.effective import depthwise_of, tensor_of
from matmix.ops.layers import StarReLU
from matmix.ops.layout import image_of
from matmix.ops.linear import linear
from matmix.ops.masks import continued
from matmix.ops.plain import is_plain
from matmix.ops.state_space import inner_width

Act = Literal["star_relu", "gelu", "relu", "silu"]
_ACTS: dict[str, type[nn.Module]] = {"star_relu": StarReLU, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@register(
    "sep_conv",
    matrix="Convolution per channel",
    cost="O(L D (D + kernel^axes))",
    source="sail-sg/metaformer",
    paper="2210.13452, equation 7",
)
class SepConv(Mixer):
    """``y = W2 act2(T act(W1 x))``: pointwise, depthwise and pointwise convolution (ConvFormer; MobileNetV2's block).

    The matrix T is a convolution with one kernel a channel of the inner width, zeros beyond the border. Whether it
    slides along a sequence or over an image is settled by the number of axes of ``grid`` (a sequence where absent).
    ``merge`` applies ``act2``: with one it is not linear, and the matrix shows what comes before it. The published
    class also takes a padding; any but half the kernel gives a map of another size, which no block can add to its own.

    Args:
        expand: inner width over ``dim``.
        kernel: taps along every axis; odd unless causal.
        act: the activation before the convolution: ``"star_relu"``, ``"gelu"``, ``"relu"`` or ``"silu"``.
        act2: the one behind it, of the same names; None for none, as in all published models.
        bias: whether the three layers have biases.
        causal: look back only (sequences); then the mixer also runs token by token on its last ``kernel - 1`` inputs.
    """

    traits = Traits(mask="trim", aligned=True)

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2.0,
        kernel: int = 7,
        act: Act = "star_relu",
        act2: Act | None = None,
        bias: bool = False,
        causal: bool = False,
    ) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, recurrent=True, dims=frozenset({1}))
        super().__init__(dim, grid)
        self.axes = 1 if self.grid is None else len(self.grid)
        if kernel % 2 == 0 and not causal:
            raise ValueError(f"kernel must be a positive integer, odd unless causal, got {kernel!r}")
        inner = inner_width(dim, expand)
        self.kernel, self.inner, self.causal = kernel, inner, causal
        self.pwconv1 = nn.Linear(dim, inner, bias=bias)
        self.act1 = _ACTS[act]()
        kind = nn.Conv1d if self.axes == 1 else nn.Conv2d
        self.dwconv = kind(inner, inner, kernel, groups=inner, bias=bias)
        self.act2 = None if act2 is None else _ACTS[act2]()
        self.pwconv2 = nn.Linear(inner, dim, bias=bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, bias = self._matrix(context.grid)
        return Projected(matrix, self._inner(x, context).mT.unsqueeze(-1), bias)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        """By the convolution itself. The bias of a layer that was replaced is in the product."""
        layer, image = self.dwconv, image_of(self._inner(x, context), context.grid)
        if is_plain(layer, nn.Conv1d if self.axes == 1 else nn.Conv2d) and layer.bias is not None:
            kernel = layer.weight if self.axes == 2 else layer.weight.unsqueeze(2)
            before = [0] * (2 - self.axes) + [b for b, _ in self._margins()]
            return convolve(image, kernel, None, before).flatten(2).unsqueeze(-1), layer.bias
        # A part of a channels-last image: its values as they come from tokens.
        return conv(layer, image, self._margins()).flatten(2).unsqueeze(-1), None

    def _inner(self, x: Tensor, context: Context) -> Tensor:
        check_axes(self, context.grid)
        # Neither biases nor StarReLU keep zeros, so padding is dropped after it.
        return drop_padding(linear(self.pwconv1, x, self.act1), context.mask)

    def _margins(self) -> list[tuple[int, int]]:
        """Taps before and after the token along every axis."""
        reach = self.kernel // 2
        return [(self.kernel - 1, 0)] if self.causal else [(reach, reach)] * self.axes

    def _matrix(self, grid: Grid) -> tuple[Convolution, Tensor | None]:
        kernel, bias = depthwise_of(self.dwconv, self.inner, (self.kernel,) * self.axes)
        kernel = kernel.squeeze(1)
        return (Convolution.causal(kernel, grid[0]) if self.causal else Convolution.centred(kernel, grid)), bias

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        mixed = merge_heads(mixed)
        return self._out(mixed if rest is None else mixed + rest)

    def _out(self, mixed: Tensor) -> Tensor:
        """What was convolved, ``(..., inner)``, to the width of the model."""
        return linear(self.pwconv2, mixed if self.act2 is None else self.act2(mixed))

    def resize_(self, grid: Grid) -> SepConv:
        check_axes(self, grid)
        return super().resize_(grid)

    # ------------------------------------------------------------------ token by token: the last kernel - 1 inputs

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        return tensor_of(self).new_zeros(batch, self.kernel - 1, self.inner)

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        seen = continued(state, self._inner(x, Context(x.shape[1:2], mask)), mask)
        mixed = conv(self.dwconv, image_of(seen, seen.shape[1:2]), self._margins()).flatten(2).mT
        return self._out(mixed[:, self.kernel - 1 :]), seen[:, x.shape[1] :]

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        now = self.act1(self.pwconv1(x)).unsqueeze(1)
        window = torch.cat((state.to(now.dtype), now), 1)
        if is_plain(self.dwconv, nn.Conv1d):
            mixed = (window * self.dwconv.weight.squeeze(1).mT).sum(1)
            mixed = mixed if self.dwconv.bias is None else mixed + self.dwconv.bias
        else:
            mixed = self.dwconv(window.mT).squeeze(-1)
        return self.pwconv2(mixed if self.act2 is None else self.act2(mixed)), window[:, 1:]

    published: ClassVar[dict[str, Any]] = {"sail-sg/metaformer": lambda module, state: state}
