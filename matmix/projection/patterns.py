"""Classes that are given by which entries may differ from 0, or which are equal: entries are kept, or averaged.

These classes are linear spaces with a basis of matrices that do not overlap, so each free number of the nearest member
is the mean of the entries that it stands for.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.banded import Banded
from matmix.matrices.base import Matrix
from matmix.matrices.chunk_diagonal import ChunkDiagonal
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.low_rank import LowRank
from matmix.projection.base import Grid, ranks, register_projection, square, whole, windows


@register_projection("dense", parameters="L_out L_in", cost="O(L^2 W)")
def dense(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Any matrix at all: the yardstick."""
    return Dense(entries), entries.shape[2] * entries.shape[3]


@register_projection("identity", parameters="1", cost="O(L W)")
def identity(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Multiples of the identity: no mixing."""
    length = square(entries, "identity")
    factor = entries.diagonal(dim1=2, dim2=3).mean(2, keepdim=True)
    return Diagonal(factor.expand(-1, -1, length)), 1


@register_projection("diagonal", parameters="L", cost="O(L W)")
def diagonal(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Diagonal matrices: every token weighed by itself."""
    length = square(entries, "diagonal")
    return Diagonal(entries.diagonal(dim1=2, dim2=3)), length


@register_projection("uniform", parameters="1", cost="O(L W)")
def uniform(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """All entries equal: every token reads the mean of all."""
    rows, columns = entries.shape[2:]
    mean = entries.mean((2, 3), keepdim=True)
    return LowRank(mean.expand(-1, -1, rows, 1), torch.ones_like(mean).expand(-1, -1, columns, 1)), 1


@register_projection("equal_rows", parameters="L_in", cost="O(L W)")
def equal_rows(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """All rows equal: every token reads the same weighted mean."""
    rows, columns = entries.shape[2:]
    weights = entries.mean(2).unsqueeze(3)
    return LowRank(torch.ones_like(weights[:, :, :1]).expand(-1, -1, rows, 1), weights), columns


@register_projection("causal", parameters="L (L + 1) / 2", cost="O(L^2 W)")
def causal(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Lower triangular matrices: no token reads a later one."""
    length = square(entries, "causal")
    return Dense(entries.tril()), length * (length + 1) // 2


@register_projection(
    "block_diagonal",
    parameters="L block",
    cost="O(L block W)",
    size="block",
    sizes=lambda grid: [2 * size for size in ranks(grid) if 2 * size <= math.prod(grid)] or [1],
)
def block_diagonal(entries: Tensor, grid: Grid, block: int) -> tuple[Matrix, int]:
    """Blocks of ``block`` tokens in a row and nothing between them; the last one may be shorter."""
    length = square(entries, "block_diagonal")
    block = whole("block", block, length)
    chunks = -(-length // block)
    fill = chunks * block - length
    batch, heads = entries.shape[:2]
    cells = F.pad(entries, (0, fill, 0, fill)).view(batch, heads, chunks, block, chunks, block)
    inner = cells.diagonal(dim1=2, dim2=4).permute(0, 4, 1, 2, 3).flatten(0, 1)  # (B K, H, C, C)
    parameters = (chunks - 1) * block**2 + (block - fill) ** 2
    return ChunkDiagonal(Dense(inner), chunks, length), parameters


@register_projection("banded", parameters="L width^axes", cost="O(L width^axes W)", size="width", sizes=windows)
def banded(entries: Tensor, grid: Grid, width: int) -> tuple[Matrix, int]:
    """A window of ``width`` tokens about each token (on an image ``width`` along each axis), with free entries."""
    square(entries, "banded")
    bands, offsets, inside = window(entries, grid, whole("width", width, 2 * max(grid) - 1, odd=True))
    return Banded(bands, offsets), int(inside.sum())


def places(grid: Grid, device: torch.device) -> Tensor:
    """Where each token of the grid stands, (L, axes)."""
    # torch.unravel_index says the same, and its first call imports for most of a second.
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    return torch.stack(axes, -1).flatten(0, -2)


def window(entries: Tensor, grid: Grid, width: int) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """What lies in a window about each token.

    Returns:
        The entries ``(B or 1, H, L, K)``, 0 beyond the grid; the K offsets in the order of the flattened tokens;
        which of the ``(L, K)`` lie on the grid.
    """
    length = math.prod(grid)
    reach = [min(width // 2, size - 1) for size in grid]
    steps = list(itertools.product(*(range(-r, r + 1) for r in reach)))
    there = places(grid, entries.device).unsqueeze(1) + torch.tensor(steps, device=entries.device)  # (L, K, axes)
    inside = ((there >= 0) & (there < torch.tensor(grid, device=entries.device))).all(2)
    strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    offsets = tuple(sum(s * t for s, t in zip(step, strides, strict=True)) for step in steps)
    columns = torch.arange(length, device=entries.device).unsqueeze(1) + torch.tensor(offsets, device=entries.device)
    index = columns.clamp(0, length - 1).expand(*entries.shape[:2], -1, -1)
    return entries.gather(3, index).masked_fill(~inside, 0), offsets, inside


@register_projection("row_stochastic", parameters="L_out (L_in - 1)", cost="O(L^2 W)")
def row_stochastic(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Rows of weights, none negative, that add up to 1.

    Each row goes to the nearest point of the simplex: ``max(m - t, 0)`` with the t at which the sum is 1. With the
    entries sorted, t is the mean excess of those that stay above it.
    """
    rows, columns = entries.shape[2:]
    sorted_rows = entries.sort(3, descending=True).values
    count = torch.arange(1, columns + 1, device=entries.device)
    thresholds = (sorted_rows.cumsum(3) - 1) / count  # t if the largest 1, 2, ... entries stay
    stay = (sorted_rows > thresholds).sum(3, keepdim=True).clamp(min=1)
    return Dense((entries - thresholds.gather(3, stay - 1)).clamp(min=0)), rows * (columns - 1)
