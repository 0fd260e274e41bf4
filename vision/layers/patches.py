"""Patches that touch but do not overlap, and what is learned about where they stand."""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.sizes import LengthError
from vision.layers.stems import Grid


@register_notrace_module  # it compares sizes, which torch.fx cannot
class PositionEmbedding(nn.Module):
    """Adds a learned vector to every place of a map ``(B, h, w, dim)``.

    Args:
        dim: channels.
        grid: rows and columns of the map.
        mode: ``"bilinear"`` or ``"bicubic"``, how ``resize_`` carries the vectors to another grid (corners free).
        dynamic: whether a map of another grid is given interpolated vectors in forward; otherwise it is an error.
    """

    undecayed: ClassVar[frozenset[str]] = frozenset({"pos_embed"})

    def __init__(self, dim: int, grid: Grid, mode: str = "bicubic", dynamic: bool = False) -> None:
        super().__init__()
        if mode not in ("bilinear", "bicubic"):
            raise ValueError(f"mode must be 'bilinear' or 'bicubic', got {mode!r}")
        self.mode, self.dynamic = mode, dynamic
        self.pos_embed = nn.Parameter(torch.empty(1, *grid, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _at(self, grid: Grid) -> Tensor:
        image = self.pos_embed.permute(0, 3, 1, 2)
        return F.interpolate(image, grid, mode=self.mode, align_corners=False).permute(0, 2, 3, 1)

    def resize_(self, grid: Grid) -> PositionEmbedding:
        """Interpolate the vectors to another grid, in place."""
        if grid != tuple(self.pos_embed.shape[1:3]):
            with torch.no_grad():
                vectors = self._at(grid).contiguous()
            self.pos_embed = nn.Parameter(vectors, self.pos_embed.requires_grad)
        return self

    def forward(self, x: Tensor) -> Tensor:
        grid, built = (x.shape[1], x.shape[2]), tuple(self.pos_embed.shape[1:3])
        if grid == built:
            return x + self.pos_embed
        if not self.dynamic:
            raise LengthError(
                f"position embeddings were built for the grid {built}, got a map of {grid}; build the model with "
                f"img_size=, or call resize_ to interpolate them"
            )
        return x + self._at(grid)

    def extra_repr(self) -> str:
        return f"grid={tuple(self.pos_embed.shape[1:3])}, mode={self.mode}, dynamic={self.dynamic}"


@register_notrace_function
def filled(image: Tensor, patch: int) -> Tensor:
    """Zeros below and on the right, up to the next multiple."""
    below, right = -image.shape[2] % patch, -image.shape[3] % patch
    return F.pad(image, (0, right, 0, below)) if below or right else image


class PatchStem(nn.Module):
    """Convolution ``patch`` x ``patch`` with that stride: image ``(B, in_chans, H, W)`` to map
    ``(B, ceil(H / patch), ceil(W / patch), dim)``.

    An image that is no multiple of the patch is filled up with zeros below and on the right (the published models
    refuse it).

    Args:
        in_chans, dim: channels before and after.
        patch: side of a patch.
        positions: added to the map.
    """

    def __init__(self, in_chans: int, dim: int, patch: int, positions: PositionEmbedding | None = None) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(in_chans, dim, patch, patch)
        self.positions = positions

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        return -(-grid[0] // self.patch), -(-grid[1] // self.patch)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(filled(image, self.patch)).permute(0, 2, 3, 1).contiguous()
        return x if self.positions is None else self.positions(x)


class PatchDownsample(PatchStem):
    """The same from one map ``(B, h, w, C)`` to a coarser one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))
