"""Measure what structure a matrix has, from its entries alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matmix.arguments import checking_arguments
from matmix.matrices.base import Matrix
from matmix.matrices.legend import fit
from matmix.ranges import Share, shown


@dataclass(frozen=True)
class RankPattern:
    """Numerical ranks of the off-diagonal blocks at every split ``k = 1 .. L-1``, the largest over samples and heads.

    A causal state space model of N states has ``lower <= N`` and ``upper = 0``; a bidirectional one is low in both.
    """

    lower: tuple[int, ...]  # rank of M[k:, :k]
    upper: tuple[int, ...]  # rank of M[:k, k:]


@dataclass(frozen=True)
class Description:
    """What was measured on the entries; every tolerance is relative to the largest entry (or singular value)."""

    shape: tuple[int, int, int, int]
    causal: bool | None  # nothing above the diagonal; None where the matrix is not square
    symmetric: bool | None
    toeplitz: bool  # constant along diagonals
    row_sums: tuple[float, float]  # smallest and largest
    row_stochastic: bool  # no negative entry, rows sum to 1
    bandwidth: tuple[int, int]  # farthest entry below and above the diagonal, 0 = none
    rank: int  # numerical rank, the largest over samples and heads, as all ranks here
    displacement_rank: int  # of M - Z M Z^T, Z shifting down by one: at most 2 for Toeplitz
    lower_rank: int | None  # largest rank of an off-diagonal block below the diagonal
    upper_rank: int | None

    def __str__(self) -> str:
        _, heads, rows, columns = self.shape
        words = [f"{rows} x {columns}, {heads} head{'s' * (heads > 1)}", f"rank {self.rank}"]
        words += [name for name in ("causal", "symmetric", "toeplitz", "row_stochastic") if getattr(self, name)]
        words.append(f"displacement rank {self.displacement_rank}")
        if self.lower_rank is not None:
            words.append(f"off-diagonal ranks {self.lower_rank} below, {self.upper_rank} above")
        words.append(f"bandwidth {self.bandwidth[0]} below, {self.bandwidth[1]} above")
        words.append(f"row sums {self.row_sums[0]:.3g} to {self.row_sums[1]:.3g}")
        return ", ".join(words)


@checking_arguments()
def describe(matrix: Matrix | Tensor, *, tolerance: Share = 1e-5) -> Description:
    """Measure a matrix or a dense ``(B, H, L_out, L_in)`` tensor. O(L^4) for the ranks of all blocks: use small L.

    ``tolerance`` is for entries that float32 computed; for float64 entries 1e-12 separates more sharply.
    """
    entries = _entries(matrix)
    batch, heads, rows, columns = entries.shape
    size = entries.abs().max().item()
    small = tolerance * size
    offset = torch.arange(columns) - torch.arange(rows)[:, None]
    present = (entries.abs() > small).flatten(0, 1).any(0)
    square = rows == columns
    sums = entries.sum(-1)
    pattern = rank_pattern(entries, tolerance=tolerance) if square else None
    shifted = entries.clone()
    shifted[:, :, 1:, 1:] -= entries[:, :, :-1, :-1]
    return Description(
        shape=(batch, heads, rows, columns),
        causal=not (present & (offset > 0)).any().item() if square else None,
        symmetric=bool(((entries - entries.mT).abs() <= small).all()) if square else None,
        toeplitz=bool((shifted[:, :, 1:, 1:].abs() <= small).all()),
        row_sums=(sums.min().item(), sums.max().item()),
        row_stochastic=bool((entries >= -small).all() and ((sums - 1).abs() <= max(1e-5, tolerance)).all()),
        bandwidth=(
            int((present * -offset).max().clamp(min=0)),
            int((present * offset).max().clamp(min=0)),
        ),
        rank=_rank(entries, tolerance),
        displacement_rank=_rank(shifted, tolerance),
        lower_rank=max(pattern.lower, default=0) if pattern else None,
        upper_rank=max(pattern.upper, default=0) if pattern else None,
    )


@checking_arguments()
def rank_pattern(matrix: Matrix | Tensor, *, tolerance: Share = 1e-5) -> RankPattern:
    """Ranks of the blocks below and above the diagonal at every split of a square matrix.

    Singular values count above ``tolerance`` times the largest singular value of the whole matrix.

    Raises:
        ValueError: if the matrix is not square.
    """
    entries = _entries(matrix)
    length = entries.shape[3]
    if entries.shape[2] != length:
        raise ValueError(f"matrix must be square to have off-diagonal blocks, got {tuple(entries.shape)}")
    scale = _scale(entries)
    splits = range(1, length)
    return RankPattern(
        lower=tuple(_rank(entries[:, :, k:, :k], tolerance, scale) for k in splits),
        upper=tuple(_rank(entries[:, :, :k, k:], tolerance, scale) for k in splits),
    )


def _entries(matrix: Matrix | Tensor) -> Tensor:
    entries = matrix.to_dense() if isinstance(matrix, Matrix) else matrix
    if isinstance(entries, Tensor) and not entries.is_floating_point() and not entries.is_complex():
        entries = entries.double()  # whole numbers are measured as well
    fit("a measure", "matrix", entries, "B H L_out L_in", None, {})
    if 0 in entries.shape or entries.is_meta or not bool(entries.isfinite().all()):
        raise ValueError(f"matrix must be of finite numbers and not empty, got {shown(entries)} on {entries.device}")
    return entries.detach().to("cpu", torch.float64)


def _scale(entries: Tensor) -> Tensor:
    """Largest singular value of every sample and head."""
    return torch.linalg.matrix_norm(entries, ord=2)[..., None]


def _rank(entries: Tensor, tolerance: float, scale: Tensor | None = None) -> int:
    values = torch.linalg.svdvals(entries)
    scale = values[..., :1] if scale is None else scale
    return int((values > tolerance * scale).sum(-1).max())
