"""Classes of structured matrices by name, and the nearest member of one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from matmix.matrices.base import Matrix
from matmix.matrices.legend import fit
from matmix.ops.precision import full_precision, working_dtype
from matmix.ranges import shown
from matmix.spec import Spec, hint, parse_spec, unknown_option

Grid = tuple[int, ...]
Nearest = Callable[..., tuple[Matrix, int]]
_NearestT = TypeVar("_NearestT", bound=Nearest)


@dataclass(frozen=True)
class ProjectionInfo:
    """One class of matrices that ``project`` knows."""

    name: str
    nearest: Nearest
    parameters: str
    """Free numbers of one matrix, in the letters of the legend."""
    cost: str
    """Asymptotic cost of one product of its members with values, a head."""
    exact: bool
    """Whether the member that is found is the nearest there is; False: a descent that may end above it."""
    size: str = ""
    """The option by which the class grows, such as ``"rank"``; empty where there is one size only."""
    sizes: Callable[[Grid], Sequence[int]] | None = None
    axes: int = 1
    """Of the smallest grids on which the class is not another one that is registered."""

    @property
    def summary(self) -> str:
        """The first sentence of the function that finds the nearest member."""
        return (inspect.getdoc(self.nearest) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def options(self) -> tuple[str, ...]:
        """What the class is told in its spec, such as ``("rank",)``."""
        return tuple(inspect.signature(self.nearest).parameters)[2:]

    def specs(self, grid: Grid | int) -> list[str]:
        """The class at sensible sizes for the tokens of a grid, from small to large: ``low_rank(rank=1)``, ..."""
        if self.sizes is None:
            return [self.name]
        return [f"{self.name}({self.size}={size})" for size in self.sizes((grid,) if isinstance(grid, int) else grid)]


@dataclass(frozen=True)
class Projection:
    """The nearest member of a class, for every sample and head."""

    spec: str
    matrix: Matrix
    """The member, with its fast product: ``(B or 1, H, L_out, L_in)``."""
    error: Tensor
    """``|M - P| / |M|`` in Frobenius norms, ``(B or 1, H)``; 0 where M is 0."""
    parameters: int
    """Free numbers of one matrix of the class (one sample, one head): the dimension of the class, so that what two
    factors have in common is counted once."""
    exact: bool
    """Whether no member of the class is nearer."""

    def __repr__(self) -> str:
        size = "x".join(map(str, self.matrix.shape))
        found = f"{float(self.error.min()):.2g} to {float(self.error.max()):.2g}" if self.error.numel() else "none"
        return f"Projection({self.spec}, {size}, free numbers: {self.parameters}, error: {found})"


_REGISTRY: dict[str, ProjectionInfo] = {}


def doubling(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``most``, at least 1: sizes each of which costs about twice the one before."""
    return tuple(1 << k for k in range(max(1, most.bit_length())))


def ranks(grid: Grid) -> tuple[int, ...]:
    """1, 2, 4, ... up to a quarter of the tokens: beyond that a dense matrix is as cheap."""
    return doubling(math.prod(grid) // 4)


def windows(grid: Grid) -> tuple[int, ...]:
    """3, 5, 9, ...: windows that reach 1, 2, 4, ... tokens to either side, up to half of the longest axis."""
    return tuple(2 * reach + 1 for reach in doubling(max(grid) // 2) if reach < max(grid)) or (1,)


def register_projection(
    name: str,
    *,
    parameters: str,
    cost: str,
    exact: bool = True,
    size: str = "",
    sizes: Callable[[Grid], Sequence[int]] | None = None,
    axes: int = 1,
) -> Callable[[_NearestT], _NearestT]:
    """Put a class of matrices under a name.

    The function takes the entries ``(B or 1, H, L_out, L_in)`` in float32 or float64, the grid of the tokens, and what
    else the class is told (``rank: int``), and returns the nearest member, with free numbers of one matrix. Its first
    sentence describes the class in tables.

    Args:
        name: the name in specs, a Python identifier.
        parameters: free numbers of one matrix, in the letters of the legend.
        cost: asymptotic cost of one product, a head.
        exact: whether what is found is the nearest there is.
        size: the option by which the class grows.
        sizes: from the grid of the tokens to sensible values of that option, from small to large.
        axes: 2 for a class that is the same as another one but on images: ``explain`` leaves it out of sequences.
    """
    if not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")
    if bool(size) != (sizes is not None):
        raise ValueError(f"{name}: size and sizes are given together, got size={size!r} and sizes={sizes!r}")

    def enrol(nearest: _NearestT) -> _NearestT:
        known = _REGISTRY.get(name)
        if known is not None and (known.nearest.__module__, known.nearest.__qualname__) != (
            nearest.__module__,
            nearest.__qualname__,
        ):
            raise ValueError(f"the class {name!r} is taken by {known.nearest.__module__}.{known.nearest.__qualname__}")
        _REGISTRY[name] = ProjectionInfo(name, nearest, parameters, cost, exact, size, sizes, axes)
        return nearest

    return enrol


def list_projections() -> list[str]:
    """The names of all classes that ``project`` knows."""
    return sorted(_REGISTRY)


def projection_info(name: str) -> ProjectionInfo:
    """What is known about a class of matrices.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown class of matrices {name!r}{hint(name, list_projections())}")
    return _REGISTRY[name]


def project(matrix: Matrix | Tensor, spec: str, *, grid: Grid | int | None = None) -> Projection:
    """The nearest member of a class of matrices, in Frobenius norm, for every sample and head.

    ::

        project(M, "toeplitz").error                  # (B or 1, H): how far each matrix is from a convolution
        project(M, "low_rank(8)").matrix              # LowRank, with the fast product
        project(M, "kron", grid=(14, 14))             # on images, the grid of the tokens
        project(M, "quasiseparable(4)").exact         # False: see there what is promised

    Members of a class come back unchanged, to rounding. ``list_projections()`` are the classes,
    ``projection_info(name)`` says what a class costs. No gradients; half types are widened to float32.

    Args:
        matrix: any ``Matrix``, or its entries ``(B or 1, H, L_out, L_in)`` or ``(L_out, L_in)``.
        spec: the class and its options, such as ``"banded(width=3)"``.
        grid: ``(L,)`` or ``(rows, columns)`` of the tokens of a square matrix; a sequence where absent.

    Raises:
        ValueError: for an unknown class or option, an option or grid that does not fit, entries that are not finite.
    """
    entries = _entries(matrix)
    calls = parse_spec(spec)
    if len(calls) != 1:
        raise ValueError(f"spec {spec!r} names {len(calls)} classes of matrices; project takes one")
    info = projection_info(calls[0].name)
    tokens = _grid(grid, entries)
    options = _options(info, calls[0])
    with torch.no_grad(), full_precision(entries.device):
        member, parameters = info.nearest(entries, tokens, **options)
        wide = entries.double()
        size = torch.linalg.matrix_norm(wide)
        error = torch.linalg.matrix_norm(wide - member.to_dense().double()) / size.where(size > 0, 1)
    return Projection(str(calls[0]), member, error.to(entries.dtype), parameters, info.exact)


def _entries(matrix: Matrix | Tensor) -> Tensor:
    with torch.no_grad():
        entries = matrix.to_dense() if isinstance(matrix, Matrix) else matrix
    if isinstance(entries, Tensor) and not entries.is_nested and entries.dim() == 2:
        fit("project", "matrix", entries, "L_out L_in", None, {})
        entries = entries[None, None]
    fit("project", "matrix", entries, "B H L_out L_in", None, {})
    if 0 in entries.shape[2:] or entries.is_meta:
        raise ValueError(f"project: matrix must hold numbers, got {shown(entries)} on {entries.device}")
    if not bool(entries.isfinite().all()):
        wrong = int((~entries.isfinite()).sum())
        raise ValueError(f"project: matrix must be finite, got {shown(entries)} with {wrong} entries that are not")
    return entries.detach().to(working_dtype(entries), copy=True)  # a member may hold views of them


def _grid(grid: Grid | int | None, entries: Tensor) -> Grid:
    rows, columns = entries.shape[2:]
    if grid is None:
        return (columns,)
    tokens = (grid,) if isinstance(grid, int) else grid
    counts = isinstance(tokens, tuple | list) and all(type(size) is int and size > 0 for size in tokens)
    if not counts or rows != columns or math.prod(tokens) != columns:
        raise ValueError(
            f"grid must be that of the tokens of a square matrix, this one is {rows} x {columns}; got {shown(grid)}"
        )
    tokens = tuple(tokens)
    return tokens


def _options(info: ProjectionInfo, call: Spec) -> dict[str, object]:
    """What the spec says, by name: positional arguments take the options in their order."""
    if len(call.args) > len(info.options):
        raise ValueError(f"{call}: {info.name} takes {', '.join(info.options) or 'no options'}")
    options: dict[str, object] = dict(zip(info.options, call.args, strict=False))
    for name, value in call.options:
        if name not in info.options:
            raise ValueError(unknown_option(info.name, name, info.options))
        if name in options:
            raise ValueError(f"{call}: {name} is given twice")
        options[name] = value
    given = inspect.signature(info.nearest).parameters
    missing = [name for name in info.options if name not in options and given[name].default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{call}: {info.name} needs {', '.join(missing)}, as in {info.name}({missing[0]}=...)")
    return options


# ------------------------------------------------------------------ what classes ask of their arguments


def square(entries: Tensor, name: str) -> int:
    """The number of tokens L of a matrix that has to be square."""
    rows, columns = entries.shape[2:]
    if rows != columns:
        raise ValueError(f"matrix must be square for {name}, got {rows} x {columns}")
    return columns


def whole(name: str, value: object, most: int, *, least: int = 1, odd: bool = False) -> int:
    """An option that is a whole number within bounds."""
    if type(value) is not int or not least <= value <= most or (odd and value % 2 == 0):
        kind = "an odd whole number" if odd else "a whole number"
        raise ValueError(f"{name} must be {kind} from {least} to {most} here, got {value!r}")
    return value
