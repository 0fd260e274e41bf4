"""Classes of products of small factors, by truncated singular value decompositions (Eckart and Young)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from matmix.matrices.algebra import Kron, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.low_rank import LowRank
from matmix.matrices.monarch import Monarch
from matmix.projection.base import Grid, doubling, ranks, register_projection, square, whole


def best_rank(entries: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``(..., rows, rank)`` and ``(..., columns, rank)`` of the nearest matrices of a rank, evenly scaled."""
    left, values, right = torch.linalg.svd(entries, full_matrices=False)
    scale = values[..., None, :rank].sqrt()
    return left[..., :rank] * scale, right[..., :rank, :].mT * scale


@register_projection("low_rank", parameters="(L_out + L_in - rank) rank", cost="O(L rank W)", size="rank", sizes=ranks)
def low_rank(entries: Tensor, grid: Grid, rank: int) -> tuple[Matrix, int]:
    """Matrices of a rank, as linear attention has them."""
    rows, columns = entries.shape[2:]
    rank = whole("rank", rank, min(rows, columns))
    return LowRank(*best_rank(entries, rank)), (rows + columns - rank) * rank


def _sides(name: str, length: int, grid: Grid, rows: int | None, columns: int | None) -> tuple[int, int]:
    """The two axes that the options or the grid state; a sequence is laid on the grid nearest to a square."""
    if rows is None and columns is None:
        return (grid[0], math.prod(grid[1:])) if len(grid) > 1 else Monarch.split(length)
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1 or rows * columns != length:
        raise ValueError(f"{name}: rows and columns must be whole numbers of product {length}, got {rows}, {columns}")
    return rows, columns


def _kron_terms(grid: Grid) -> tuple[int, ...]:
    sides = _sides("kron", math.prod(grid), grid, None, None)
    return doubling(min(min(sides) ** 2, max(sides) // 2))


@register_projection(
    "kron",
    parameters="(rows^2 + columns^2 - terms) terms",
    cost="O(L (rows + columns) W terms)",
    size="terms",
    sizes=_kron_terms,
)
def kron(
    entries: Tensor, grid: Grid, rows: int | None = None, columns: int | None = None, terms: int = 1
) -> tuple[Matrix, int]:
    """One matrix along the rows times one along the columns of the image, or a sum of ``terms`` of these.

    With the entries ordered by pairs of rows and pairs of columns, a Kronecker product is a matrix of rank 1. A
    sequence is laid on the grid that is nearest to a square.
    """
    length = square(entries, "kron")
    sides = first, second = _sides("kron", length, grid, rows, columns)
    terms = whole("terms", terms, min(first, second) ** 2)
    pairs = entries.unflatten(3, sides).unflatten(2, sides).transpose(3, 4)  # (B, H, row, row', column, column')
    left, right = best_rank(pairs.flatten(4).flatten(2, 3), terms)
    parts = [
        Kron(Dense(left[..., k].unflatten(2, (first, first))), Dense(right[..., k].unflatten(2, (second, second))))
        for k in range(terms)
    ]
    parameters = (first**2 + second**2 - terms) * terms
    return (parts[0] if terms == 1 else Sum.of(*parts)), parameters


@register_projection("monarch", parameters="L (rows + columns - 1)", cost="O(L (rows + columns) W), L^1.5 on a square")
def monarch(entries: Tensor, grid: Grid, rows: int | None = None, columns: int | None = None) -> tuple[Matrix, int]:
    """Mixing within every row of a grid by a matrix of its own, then within every column.

    The entries between a row of tokens that is read and a column of tokens that is written are a block of rank 1, and
    blocks share no factor. A sequence is laid on the grid that is nearest to a square.
    """
    length = square(entries, "monarch")
    sides = _sides("monarch", length, grid, rows, columns)
    blocks = entries.unflatten(3, sides).unflatten(2, sides)  # (B, H, d, c, a, b)
    left, right = best_rank(blocks.permute(0, 1, 3, 4, 2, 5), 1)  # (B, H, c, a, d, 1) and (B, H, c, a, b, 1)
    member = Monarch(left.squeeze(5).transpose(3, 4), right.squeeze(5).transpose(2, 3))
    return member, length * (sum(sides) - 1)
