"""init="projected": a fixed or learned matrix begins at the nearest member of its class to what the old mixer does on
average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters import Found, Replacement
from matmix.mixers.base import Grid
from matmix.mixers.dense import Dense
from matmix.mixers.global_filter import GlobalFilter
from matmix.mixers.just_dense import JustDense
from matmix.mixers.mean_matrix import MeanMatrix
from matmix.mixers.monarch import Monarch
from matmix.projection import project
from matmix.projection.shifts import lag_means
from matmix.surgery import recurrences, structures
from matmix.surgery.average import mean_matrices
from matmix.surgery.report import Row

Setter = Callable[[Any, Tensor, Grid], Tensor]
# A module -> what sets its parameters by the mean (1, H, L, L) of as many heads as it has, on the grid of its tokens,
# and returns the matrix that it has then.
_SETTERS: dict[type[nn.Module], tuple[str, Setter]] = {}


class NoMatrix(ValueError):
    """What is put into a site has no matrix that it could begin at."""


def write_projected(model: nn.Module, rows: list[Row], found: Iterable[Found], batches: Iterable[Any] | None) -> None:
    """Give the parts of these rows the projections of the mean matrices of their sites; each row notes how far it is.

    Raises:
        ValueError: without batches, or for a part that cannot begin at a matrix; the message lists those that can.
    """
    if batches is None:
        raise ValueError("init='projected' begins at the mean of the old matrices over data: give batches=")
    parts = {row.site.name: row.part.mixer if isinstance(row.part, Replacement) else row.part for row in rows}
    for row in rows:
        _refuse(row, parts[row.site.name])
    means = mean_matrices(model, [one for one in found if one.site.name in parts], batches)
    with torch.no_grad():
        for row in rows:
            part: Any = parts[row.site.name]
            site = row.site
            mean = means[site.name].unsqueeze(0)
            aside = site.prefix if site.prefix_as == "aside" and row.level == "module" else 0
            mean = mean[:, :, aside:, aside:]
            grid = part.size.grid if isinstance(part, structures.MatrixOf) else part.grid
            setter = _setter(part)
            assert setter is not None
            mean = _heads(site.name, mean, _count(part))
            made = setter(part, mean, grid or (mean.shape[3],))
            away = torch.linalg.matrix_norm(made - mean).norm() / torch.linalg.matrix_norm(mean).norm()
            row.notes = (*row.notes, f"begins {float(away):.1%} from the mean matrix")


def _refuse(row: Row, part: Any) -> None:
    """Refuse what cannot begin at a matrix."""
    name, inner = row.site.name, row.level == "matrix"
    can = [word for kind, (word, _) in _SETTERS.items() if issubclass(kind, structures.MatrixOf) == inner]
    allowed = f"at level={row.level!r} these can: {', '.join(can)}"
    if _setter(part) is None:
        raise NoMatrix(f"{name}: {row.spec!r} cannot begin at a matrix, init='projected'; {allowed}")
    if isinstance(part, structures.Thin) and (part.data_dependent or part.causal):
        why = "its factors come from the tokens" if part.data_dependent else "the nearest causal one is not known"
        raise NoMatrix(f"{name}: {row.spec!r} cannot begin at a matrix, {why}; {allowed}")
    if isinstance(part, recurrences.BothSides) and part.order is None:
        why = "its factors come from the tokens, of quasiseparable(order=...) they do not"
        raise NoMatrix(f"{name}: {row.spec!r} cannot begin at a matrix, {why}; {allowed}")
    if isinstance(part, GlobalFilter) and part.bottleneck is not None:
        raise NoMatrix(f"{name}: {row.spec!r} cannot begin at a matrix, its filter is of inner channels; {allowed}")
    if isinstance(part, JustDense) and part.wrapper != "attention":
        raise NoMatrix(f"{name}: {row.spec!r} cannot begin at a matrix, its tokens are projected first; {allowed}")


def _setter(part: nn.Module) -> Setter | None:
    return next((_SETTERS[kind][1] for kind in type(part).__mro__ if kind in _SETTERS), None)


def _count(part: Any) -> int:
    """Matrices that a part has."""
    if isinstance(part, structures.MatrixOf):
        return part.size.heads
    return part.inner if isinstance(part, GlobalFilter) else part.heads


def _heads(name: str, mean: Tensor, heads: int) -> Tensor:
    """A matrix for each of so many heads: the one of the head that they were a part of, the mean of those they join."""
    old = mean.shape[1]
    if heads % old == 0:
        return mean.repeat_interleave(heads // old, 1)
    if old % heads == 0:
        return mean.unflatten(1, (heads, -1)).mean(2)
    raise ValueError(f"{name}: {heads} matrices cannot begin at {old}: one number must divide the other")


def _sets(kind: type[nn.Module], name: str) -> Callable[[Setter], Setter]:
    def enrol(setter: Setter) -> Setter:
        _SETTERS[kind] = (name, setter)
        return setter

    return enrol


# ------------------------------------------------------------------ level="matrix"


@_sets(structures.FreeMatrix, "dense")
def _dense(part: structures.FreeMatrix, mean: Tensor, grid: Grid) -> Tensor:
    made = mean.tril() if part.causal else mean
    part.learned.M.copy_(made[0] * made.shape[3] ** 0.5)  # type: ignore[operator]
    return made


@_sets(structures.Translations, "toeplitz")
def _toeplitz(part: structures.Translations, mean: Tensor, grid: Grid) -> Tensor:
    length = mean.shape[3]
    nearest = project(mean, "causal_toeplitz" if part.causal else "toeplitz").matrix.to_dense()
    taps = lag_means(nearest, (length,), (2 * length - 1,))
    taps = taps[..., :length] if part.causal else taps.roll(length - 1, -1)
    part.learned.conv_params.copy_(taps[0] * 2 * length**0.5)  # type: ignore[operator]
    return nearest


@_sets(structures.Thin, "low_rank")
def _low_rank(part: structures.Thin, mean: Tensor, grid: Grid) -> Tensor:
    rank = part.learned.qk_dim
    nearest: Any = project(mean, f"low_rank({rank})").matrix
    scale = (mean.shape[3] * rank) ** 0.25
    for name, factor in (("q_matrix", nearest.left), ("k_matrix", nearest.right)):
        getattr(part.learned, name).copy_(factor[0].transpose(0, 1) * scale)
    return nearest.to_dense()


@_sets(recurrences.BothSides, "quasiseparable(order)")
def _quasiseparable(part: recurrences.BothSides, mean: Tensor, grid: Grid) -> Tensor:
    kind = "semiseparable" if part.causal else "quasiseparable"
    nearest: Any = project(mean, f"{kind}({part.order})").matrix
    part.lower.set_to(nearest if part.causal else nearest.lower)
    if not part.causal:
        part.upper.set_to(nearest.upper)
        part.skip.copy_(nearest.skip[0])
    return nearest.to_dense()


@_sets(structures.TwoFactors, "monarch")
@_sets(Monarch, "monarch")
def _monarch(part: structures.TwoFactors | Monarch, mean: Tensor, grid: Grid) -> Tensor:
    nearest: Any = project(mean, "monarch", grid=grid).matrix
    part.left.copy_(nearest.left[0])
    part.right.copy_(nearest.right[0])
    return nearest.to_dense()


@_sets(structures.Mean, "mean_matrix")
@_sets(MeanMatrix, "mean_matrix")
def _mean(part: structures.Mean | MeanMatrix, mean: Tensor, grid: Grid) -> Tensor:
    part.entries.copy_(mean[0])
    return mean


# ------------------------------------------------------------------ level="module": tokens as they come


@_sets(Dense, "dense and spatial_fc")
def _free(part: Dense, mean: Tensor, grid: Grid) -> Tensor:
    part.M.copy_(_less_identity(mean)[0] if part.inner_residual else mean[0])
    return mean


@_sets(JustDense, "justdense")
def _justdense(part: JustDense, mean: Tensor, grid: Grid) -> Tensor:
    part.M.copy_(_less_identity(mean)[0])
    return mean


def _less_identity(mean: Tensor) -> Tensor:
    """What is divided by ``sqrt(L)`` and stands beside an identity."""
    length = mean.shape[3]
    return (mean - torch.eye(length, dtype=mean.dtype)) * length**0.5


@_sets(GlobalFilter, "global_filter")
def _global_filter(part: GlobalFilter, mean: Tensor, grid: Grid) -> Tensor:
    kernel = lag_means(mean, grid, grid)[0]
    axes = tuple(range(-len(grid), 0))
    part.complex_weights.copy_(torch.view_as_real(torch.fft.rfftn(kernel, dim=axes)).movedim(0, -2))
    return project(mean, "circulant", grid=grid).matrix.to_dense()
