"""Parts of FFNet: convolutions with batch norms that fold away, and linear layers between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from matmix.ops.linear import affine, linear
from matmix.ops.pieces import pieces
from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype
from matmix.ops.reparam import BranchedConv, convolved
from vision.layers.conv_norm import ConvNorm, ImageConvNorm
from vision.layers.stems import Grid


@register_notrace_module
class ConvMlp(nn.Module):
    """Depthwise convolution with batch norm, then a pointwise MLP with GELU, on maps ``(B, h, w, dim)``.

    Args:
        dim: channels.
        hidden: width of the MLP.
        kernel: taps along both axes, odd.
        pair: a 3 x 3 branch next to the convolution, with a batch norm of its own.
    """

    def __init__(self, dim: int, hidden: int, kernel: int, pair: bool) -> None:
        super().__init__()
        branches: dict[str, tuple[int, ...]] = {"conv": (kernel, kernel)}
        if pair:
            branches["conv1"] = (3, 3)
        self.conv: nn.Module = BranchedConv(dim, branches)
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.widest = hidden / dim  # the inner map over the outer one

    def forward(self, x: Tensor) -> Tensor:
        x = convolved(self.conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        parts = pieces(x, self, self.widest)
        done = [linear(self.fc2, linear(self.fc1, part, self.act)) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)


@register_notrace_module
class NormedSkip(nn.Module):
    """``x + W norm(x)`` on maps ``(B, h, w, dim)``, with batch norm; outside of training one linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.linear = nn.Linear(dim, dim, bias=False)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the one linear layer that is the same by the running statistics."""
        norm, weight = self.norm, self.linear.weight
        if isinstance(norm, nn.Identity):
            return weight, self.linear.bias
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        exact = working_dtype(weight)
        factor = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        shift = norm.bias.to(exact) - norm.running_mean.to(exact) * factor
        wide = weight.to(exact)
        one = torch.eye(len(weight), dtype=exact, device=weight.device)
        return (wide * factor + one).to(weight.dtype), (wide @ shift).to(weight.dtype)

    def fuse_(self) -> Self:
        """Put norm and skip into the linear layer, in place and for good."""
        if not isinstance(self.norm, nn.Identity):
            with torch.no_grad():
                weight, bias = self.folded()
                assert bias is not None
                self.linear.weight.copy_(weight)
                self.linear.bias = nn.Parameter(bias)
            self.norm = nn.Identity()
        return self

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.Identity):  # after fuse_
            return linear(self.linear, x)
        if norm.training or not (is_plain(norm, nn.BatchNorm2d) and is_plain(self.linear, nn.Linear)):
            return x + self.linear(norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return affine(x, *self.folded())


@register_notrace_module
class PatchMerging(nn.Module):
    """Map ``(B, h, w, dim)`` to ``(B, ceil(h / 2), ceil(w / 2), out_dim)``: every channel gives ``out_dim / dim`` by a
    strided 7 x 7 convolution (with a 3 x 3 branch), then ``x + W norm(x)``."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv: nn.Module = BranchedConv(dim, {"conv": (7, 7), "conv1": (3, 3)}, out_dim=out_dim, stride=2)
        self.skip = NormedSkip(out_dim)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the coarser map."""
        return -(-grid[0] // 2), -(-grid[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(convolved(self.conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ConvMerging(nn.Module):
    """The downsampling of ``ffnet_seg``: strided 3 x 3 convolution to twice the width, GELU, pointwise convolution."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, 2 * out_dim, 3, 2, act="gelu")
        self.conv2 = ConvNorm(2 * out_dim, out_dim)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the coarser map."""
        return self.conv1.out_grid(grid)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Stem(nn.Module):
    """3 x 3 convolutions with batch norm, one a stride: image ``(B, in_chans, H, W)`` to map ``(B, h, w, dim)``.

    Args:
        in_chans: channels of the image.
        widths: channels behind each convolution; the last are those of the map.
        strides: of the convolutions.
        active: how many of them have a GELU behind.
    """

    def __init__(self, in_chans: int, widths: Sequence[int], strides: Sequence[int], active: int) -> None:
        super().__init__()
        self.names = tuple(f"conv{i + 1}" for i in range(len(strides)))
        before = in_chans
        for i, (name, width, stride) in enumerate(zip(self.names, widths, strides, strict=True)):
            cls = ConvNorm if i else ImageConvNorm
            self.add_module(name, cls(before, width, 3, stride, act="gelu" if i < active else None))
            before = width

    def _convs(self) -> list[ConvNorm]:
        return [self.get_submodule(name) for name in self.names]  # type: ignore[misc]

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        for conv in self._convs():
            grid = conv.out_grid(grid)
        return grid

    def forward(self, x: Tensor) -> Tensor:
        for conv in self._convs():
            x = conv(x)
        return x


class MapBatchNorm(nn.Module):
    """Batch norm of maps ``(B, h, w, dim)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
