"""From an image to the first map, and from one map to a coarser one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vision.layers.norms import make_norm

Grid = tuple[int, int]


def conv_grid(grid: Grid, kernel: int, stride: int, padding: int) -> Grid:
    """The grid that a convolution leaves of a grid."""
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in grid)
    return rows, columns


class ConvStem(nn.Module):
    """Convolution 7 x 7 with stride 4 and padding 2, then a norm: image ``(B, in_chans, H, W)`` to map
    ``(B, floor((H + 1) / 4), floor((W + 1) / 4), dim)``.

    Args:
        in_chans: channels of the image.
        dim: channels of the map.
        norm: a name of ``NORMS``, None for no norm (PoolFormer).
    """

    def __init__(self, in_chans: int, dim: int, norm: str | None = "layer") -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, 4, 2)
        self.norm = nn.Identity() if norm is None else make_norm(norm, dim)

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        return conv_grid(grid, 7, 4, 2)

    def forward(self, image: Tensor) -> Tensor:
        # A channels-last image, which is small, asks for a channels-last result, which is a map without a copy. Weights
        # laid out so would ask for it too, and be refused by safetensors.
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(image).permute(0, 2, 3, 1).contiguous())


class ConvDownsample(nn.Module):
    """A norm, then convolution 3 x 3 with stride 2 and padding 1: map ``(B, h, w, dim)`` to
    ``(B, ceil(h / 2), ceil(w / 2), out_dim)``.

    Args:
        dim, out_dim: channels before and after.
        norm: a name of ``NORMS``, None for no norm (PoolFormer).
        positions: a module on the coarser map, such as a position embedding.
    """

    def __init__(self, dim: int, out_dim: int, norm: str | None = "layer", positions: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else make_norm(norm, dim)
        self.conv = nn.Conv2d(dim, out_dim, 3, 2, 1)
        self.positions = positions

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the coarser map."""
        return conv_grid(grid, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        return x if self.positions is None else self.positions(x)
