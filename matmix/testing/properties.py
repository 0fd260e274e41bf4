"""Words that a matrix class may put in ``properties``, each with the law that it stands for.

Structure is read off the dense matrix in float64. Classes on a grid (``matrix.grid``) are looked at axis by axis;
classes with a bounded rank state it in ``matrix.order``, and banded ones their half width in ``matrix.bandwidth``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from matmix.matrices.base import Matrix
from matmix.testing.compare import close, same


def _square(matrix: Matrix, dense: Tensor) -> None:
    assert dense.shape[2] == dense.shape[3], f"a {dense.shape[2]} x {dense.shape[3]} matrix cannot have this property"


def _causal(matrix: Matrix, dense: Tensor) -> None:
    above = dense.triu(1)
    same(above, torch.zeros_like(above), "entries above the diagonal")


def _row_stochastic(matrix: Matrix, dense: Tensor) -> None:
    assert bool((dense >= 0).all()), f"an entry is negative: {float(dense.min()):.3g}"
    sums = dense.sum(-1)
    close(sums, torch.ones_like(sums), "row sums")


def _symmetric(matrix: Matrix, dense: Tensor) -> None:
    _square(matrix, dense)
    close(dense, dense.mT, "M against its transpose")


def _orthogonal(matrix: Matrix, dense: Tensor) -> None:
    _square(matrix, dense)
    eye = torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
    close(dense @ dense.mT, eye.expand_as(dense), "M M^T")


def _permutation(matrix: Matrix, dense: Tensor) -> None:
    _square(matrix, dense)
    assert bool(((dense == 0) | (dense == 1)).all()), "an entry is neither 0 nor 1"
    for axis, name in ((-1, "row"), (-2, "column")):
        assert bool((dense.sum(axis) == 1).all()), f"a {name} has not exactly one 1"


def _selection(matrix: Matrix, dense: Tensor) -> None:
    assert bool(((dense == 0) | (dense == 1)).all()), "an entry is neither 0 nor 1"
    assert bool((dense.sum(-1) == 1).all()), "a row has not exactly one 1"


def _diagonal(matrix: Matrix, dense: Tensor) -> None:
    rest = dense - torch.diag_embed(dense.diagonal(dim1=-2, dim2=-1))
    same(rest, torch.zeros_like(rest), "entries off the diagonal")


def _by_axes(matrix: Matrix, dense: Tensor) -> tuple[Tensor, int]:
    """``(B, H, *grid, *grid)`` and the number of axes."""
    _square(matrix, dense)
    grid = tuple(getattr(matrix, "grid", None) or (dense.shape[-1],))
    return dense.reshape(*dense.shape[:2], *grid, *grid), len(grid)


def _toeplitz(matrix: Matrix, dense: Tensor) -> None:
    entries, axes = _by_axes(matrix, dense)
    for axis in range(2, 2 + axes):
        size = entries.shape[axis] - 1
        here = entries.narrow(axis, 0, size).narrow(axis + axes, 0, size)
        there = entries.narrow(axis, 1, size).narrow(axis + axes, 1, size)
        close(there, here, f"entries shifted by one along axis {axis - 2} of the grid", scale=entries)


def _circulant(matrix: Matrix, dense: Tensor) -> None:
    entries, axes = _by_axes(matrix, dense)
    for axis in range(2, 2 + axes):
        rolled = entries.roll((1, 1), (axis, axis + axes))
        close(rolled, entries, f"entries rolled by one along axis {axis - 2} of the grid", scale=entries)


def _banded(matrix: Matrix, dense: Tensor) -> None:
    grid = tuple(getattr(matrix, "grid", None) or (dense.shape[-1],))
    width = _stated(matrix, "bandwidth", "banded")
    widths = (width,) * len(grid) if isinstance(width, int) else tuple(width)  # type: ignore[arg-type]
    assert len(widths) == len(grid), f"bandwidth {width} over the grid {grid}"
    entries, axes = _by_axes(matrix, dense)
    for axis, bound in enumerate(widths):
        place = torch.arange(grid[axis], device=dense.device)
        far = (place[:, None] - place).abs() > bound
        view = [1] * entries.dim()
        view[2 + axis], view[2 + axis + axes] = grid[axis], grid[axis]
        outside = entries.masked_fill(~far.view(view), 0)
        same(outside, torch.zeros_like(outside), f"entries further than {bound} along axis {axis} of the grid")


def _stated(matrix: Matrix, name: str, word: str) -> object:
    assert hasattr(matrix, name), f'a class that says "{word}" states {name}'
    return getattr(matrix, name)


def _rank_at_most(block: Tensor, order: object, what: str, scale: Tensor) -> None:
    assert isinstance(order, int), f"order must be an int, got {order!r}"
    if min(block.shape[-2:]) <= order or block.numel() == 0:
        return
    beyond = float(torch.linalg.svdvals(block)[..., order].max())
    size = float(scale.abs().max()) * math.sqrt(block.shape[-1] * block.shape[-2])
    assert beyond <= 1e-10 * size, f"rank of {what} is above order={order}: singular value {beyond:.3g} of {size:.3g}"


def _low_rank(matrix: Matrix, dense: Tensor) -> None:
    _rank_at_most(dense, _stated(matrix, "order", "low_rank"), "the matrix", dense)


def _semiseparable(matrix: Matrix, dense: Tensor) -> None:
    _causal(matrix, dense)
    order = _stated(matrix, "order", "semiseparable")
    for row in range(dense.shape[-1]):
        _rank_at_most(dense[..., row:, : row + 1], order, f"rows {row}.. of columns ..{row}", dense)


def _quasiseparable(matrix: Matrix, dense: Tensor) -> None:
    _square(matrix, dense)
    order = _stated(matrix, "order", "quasiseparable")
    for row in range(1, dense.shape[-1]):
        _rank_at_most(dense[..., row:, :row], order, f"the block below row {row}", dense)
        _rank_at_most(dense[..., :row, row:], order, f"the block above row {row}", dense)


def _vandermonde(matrix: Matrix, dense: Tensor) -> None:
    """Every row is a sum of at most ``order`` geometric series: its Hankel matrix has at most that rank."""
    order = _stated(matrix, "order", "vandermonde")
    size = (dense.shape[-1] + 1) // 2
    _rank_at_most(dense.unfold(-1, size, 1), order, "the Hankel matrix of a row", dense)


def _monarch(matrix: Matrix, dense: Tensor) -> None:
    """``M[(d, c), (a, b)]`` on an m x n grid is of rank 1 in (d, b) for every c and a."""
    _square(matrix, dense)
    grid = _stated(matrix, "grid", "monarch")
    blocks = dense.unflatten(3, grid).unflatten(2, grid)
    _rank_at_most(blocks.permute(0, 1, 3, 4, 2, 5), 1, "a block of equal (c, a)", dense)


PROPERTIES: dict[str, Callable[[Matrix, Tensor], None]] = {
    "causal": _causal,
    "row_stochastic": _row_stochastic,
    "symmetric": _symmetric,
    "orthogonal": _orthogonal,
    "permutation": _permutation,
    "selection": _selection,
    "diagonal": _diagonal,
    "toeplitz": _toeplitz,
    "circulant": _circulant,
    "banded": _banded,
    "low_rank": _low_rank,
    "semiseparable": _semiseparable,
    "quasiseparable": _quasiseparable,
    "vandermonde": _vandermonde,
    "monarch": _monarch,
}
"""word -> law(matrix in float64, its dense form); raises AssertionError."""
