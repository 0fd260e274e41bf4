"""Convolution, batch norm, activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.activations import looked_on
from matmix.ops.linear import affine
from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype
from vision.layers.mlp import ACTIVATIONS
from vision.layers.stems import Grid, conv_grid

# What writes an activation's result over its input, by its class; the module comes along for its options.
_IN_PLACE: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda act, x: torch.relu_(x),
    nn.SiLU: lambda act, x: F.silu(x, inplace=True),
    nn.GELU: lambda act, x: torch.ops.aten.gelu_(x, approximate=act.approximate),
}


@register_notrace_module  # it looks at sizes and modes, which torch.fx cannot
class ConvNorm(nn.Module):
    """``act(norm(conv(x)))`` on maps ``(B, h, w, dim)``; strided, the grid is ``ceil(grid / stride)``.

    Outside of training the batch norm is folded into the convolution's weights, a pass over the map less, where both
    are plain layers; ``fuse_`` folds for good.

    Args:
        dim, out_dim: channels before and after.
        kernel: taps along both axes, odd; padded with zeros.
        stride, groups, dilation: of the convolution.
        act: a name of ``ACTIVATIONS``, or None for none.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: str | None = None,
    ) -> None:
        super().__init__()
        if act is not None and act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)} or None, got {act!r}")
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()
        self.reach = dilation * (kernel - 1) + 1, stride, dilation * (kernel // 2)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the result."""
        return conv_grid(grid, *self.reach)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the one convolution that is the same by the running statistics."""
        conv, norm = self.conv, self.norm
        if isinstance(norm, nn.Identity):
            return conv.weight, conv.bias
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        exact = working_dtype(norm.weight)
        factor = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        mean = norm.running_mean.to(exact)
        shift = norm.bias.to(exact) - (mean if conv.bias is None else mean - conv.bias.to(exact)) * factor
        weight = conv.weight.to(exact) * factor.view(-1, 1, 1, 1)
        return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)

    def fuse_(self) -> Self:
        """Put the batch norm into the convolution, in place and for good: train before, not after."""
        if not isinstance(self.norm, nn.Identity):
            with torch.no_grad():
                weight, bias = self.folded()
                assert bias is not None
                self.conv.weight.copy_(weight)
                self.conv.bias = nn.Parameter(bias)
            self.norm = nn.Identity()
        return self

    def _folds(self) -> bool:
        """Whether the weights may be read and folded in the place of calling convolution and norm."""
        norm = self.norm
        if type(norm) is nn.BatchNorm2d:
            running = not norm.training and norm.running_mean is not None and norm.affine
            return running and is_plain(norm, nn.BatchNorm2d) and is_plain(self.conv, nn.Conv2d)
        return is_plain(norm, nn.Identity) and is_plain(self.conv, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if not self._folds() or conv.padding_mode != "zeros":
            return self.act(self.norm(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))
        weight, bias = self.folded()
        if conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
            return affine(x, weight.flatten(1), bias, self.act)
        image = x.permute(0, 3, 1, 2)
        image = F.conv2d(image, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self._activate(image.permute(0, 2, 3, 1))

    def _activate(self, x: Tensor) -> Tensor:
        """The activation of a map that was made here: in place unless autograd looks on or a hook would see it."""
        if not looked_on(x):
            for kind, in_place in _IN_PLACE.items():
                if is_plain(self.act, kind):
                    return in_place(self.act, x)
        return self.act(x)


class ImageConvNorm(ConvNorm):
    """A ``ConvNorm`` on images ``(B, C, H, W)`` in any memory format, for stems: gives the first map."""

    def forward(self, x: Tensor) -> Tensor:
        # An image has few channels: turning it is cheaper than turning the map.
        return super().forward(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
