"""Butterfly: a learned matrix of log2 L sparse factors."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from matmix.matrices.butterfly import Butterfly as ButterflyMatrix
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, split_heads
from matmix.mixers.registry import register


@register(
    "butterfly",
    matrix=ButterflyMatrix,
    cost="O(L D log L)",
    source="HazyResearch/butterfly",
    paper="1903.05895, section 3",
)
class Butterfly(Mixer):
    """``y = M x`` with one butterfly matrix a head, the same for all data; images are read row by row.

    All 2 x 2 blocks start as rotations by random angles, so M starts orthogonal (on a power of two; otherwise it is
    the leading block of an orthogonal matrix).

    Args:
        heads: number of matrices; the largest divisor of ``dim`` that divides 8 where absent.
    """

    traits = Traits(length="fixed", mask="content")

    def __init__(self, dim: int, grid: Grid | None = None, *, heads: int | None = None) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        self.heads = math.gcd(dim, 8) if heads is None else heads
        if dim % self.heads:
            raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads!r}")
        depth = ButterflyMatrix.depth(math.prod(self.grid))
        angle = 2 * math.pi * torch.rand(self.heads, depth, (1 << depth) // 2)
        rotation = torch.stack((angle.cos(), angle.sin(), -angle.sin(), angle.cos()), -1)
        self.blocks = nn.Parameter(rotation.unflatten(-1, (2, 2)))

    def project(self, x: Tensor, context: Context) -> Projected:
        values = split_heads(x, self.heads)
        return Projected(ButterflyMatrix(self.blocks.unsqueeze(0), x.shape[1]), values)

    def resize_(self, grid: Grid) -> Self:
        """A shorter sequence keeps the leading blocks. A longer one repeats them for the further positions, and new
        factors start as the identity: positions keep their distance, nothing is interpolated."""
        super().resize_(grid)
        assert self.grid is not None
        heads, old = self.blocks.shape[:2]
        new = ButterflyMatrix.depth(math.prod(self.grid))
        blocks = self.blocks.detach()[:, :new, : (1 << new) // 2]
        if new > old:
            further = torch.eye(2, dtype=blocks.dtype, device=blocks.device).expand(
                heads, new - old, (1 << new) // 2, 2, 2
            )
            blocks = torch.cat((blocks.repeat(1, 1, 1 << (new - old), 1, 1) if old else further[:, :0], further), 1)
        self.blocks = nn.Parameter(blocks.clone(), self.blocks.requires_grad)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"
