"""How far the matrices of heads are from each class of structured matrices, and which class is the smallest that fits.

S samples, H heads, L tokens. All errors are relative and pooled over the samples, ``sqrt(sum |M_s - P_s|^2 /
sum |M_s|^2)``, so that three questions have comparable answers:

- *own*: each sample's matrix has a member of its own, the nearest;
- *fixed*: one member P serves all. Since ``sum |M_s - P|^2 = sum |M_s - M|^2 + S |M - P|^2`` with the mean M, the best
  P is the member nearest to the mean, and nothing but the distance of the mean and the spread has to be known;
- *mean*: how far the mean matrix is from the class, by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from matmix.mixers.base import Grid
from matmix.projection import list_projections, project, projection_info
from matmix.spec import hint, parse_spec

ENTRIES = 2**24  # written out at once while they are projected


@dataclass(frozen=True)
class Distance:
    """The distance of one head from one class of matrices."""

    spec: str
    parameters: int
    """Free numbers of one matrix of the class."""
    flops: int
    """Floating-point operations of one product, for one sequence and head."""
    error: float
    """With a member for each sample."""
    fixed_error: float
    """With one member for all samples."""
    mean_error: float
    """Of the mean matrix."""
    exact: bool
    """Whether no member is nearer; otherwise the errors are upper bounds."""
    explains: bool
    """Whether the class is small enough to be an explanation."""


@dataclass(frozen=True)
class Measured:
    """What the matrices of one head are."""

    variation: float
    """How far they are from their mean: 0 for one fixed matrix."""
    distances: tuple[Distance, ...]
    tolerance: float

    @property
    def fixed(self) -> bool:
        """Whether one matrix serves all data: that of the class found, else the mean itself."""
        found = _smallest(self.distances, self.tolerance, fixed=True)
        return found is not None or (self._own is None and self.variation <= self.tolerance)

    @property
    def found(self) -> Distance | None:
        """The smallest class within the tolerance: one matrix for all data if there is one, else one for each."""
        return _smallest(self.distances, self.tolerance, fixed=True) or self._own

    @property
    def error(self) -> float | None:
        """The error of that class; None where there is none."""
        found = self.found
        return None if found is None else found.fixed_error if self.fixed else found.error

    @property
    def nearest(self) -> Distance | None:
        """The class with the least error of those that are small enough to explain anything."""
        return min((d for d in self.distances if d.explains), key=lambda d: (d.error, d.parameters), default=None)

    @property
    def _own(self) -> Distance | None:
        return _smallest(self.distances, self.tolerance, fixed=False)


def _smallest(distances: Sequence[Distance], tolerance: float, *, fixed: bool) -> Distance | None:
    fit = (d for d in distances if d.explains and (d.fixed_error if fixed else d.error) <= tolerance)
    return min(fit, key=lambda d: (d.parameters, d.flops, d.spec), default=None)


# ------------------------------------------------------------------ classes and their sizes


@dataclass(frozen=True)
class Ladder:
    """A class of matrices at its sizes, or one member of it as the user wrote it."""

    name: str
    sizes: tuple[int, ...] = ()  # in ascending order; none: one size only

    def spec(self, size: int) -> str:
        """The class at a size, as ``project`` reads it."""
        return f"{self.name}({projection_info(self.name).size}={size})" if self.sizes else self.name

    @property
    def step(self) -> int:
        """Between neighbouring sizes: windows are odd."""
        return 2 if len(self.sizes) > 1 and all(size % 2 for size in self.sizes) else 1


def ladders(classes: Sequence[str] | None, rows: int, columns: int, grid: Grid) -> list[Ladder]:
    """The classes to be measured.

    Args:
        classes: names (all sizes) or specs with options (as they are); all but ``dense`` where absent, without those
            for square matrices where the matrix is not, and those that are of their own on images alone elsewhere.
        rows, columns: of the matrices.
        grid: of the tokens.
    """
    found = []
    usual = [name for name in list_projections() if name != "dense" and projection_info(name).axes <= len(grid)]
    for name in usual if classes is None else classes:
        sizes = tuple(projection_info(name).sizes(grid)) if name in list_projections() and _sized(name) else ()  # type: ignore[misc]
        ladder = Ladder(name, sizes)
        if classes is None and rows != columns and not _takes(ladder, rows, columns):
            continue
        found.append(ladder)
    return found


def check_classes(classes: Sequence[str] | None) -> None:
    """Refuse what is no class of matrices, before anything runs."""
    for spec in classes or ():
        calls = parse_spec(spec)
        if len(calls) != 1:
            raise ValueError(f"classes: {spec!r} names {len(calls)} classes, each entry is one")
        if calls[0].name not in list_projections():
            raise ValueError(
                f"classes: unknown class of matrices {calls[0].name!r}{hint(calls[0].name, list_projections())}"
            )
    if classes is not None and not classes:
        raise ValueError("classes must name at least one class of matrices, got none")


def _sized(name: str) -> bool:
    return projection_info(name).sizes is not None


def _takes(ladder: Ladder, rows: int, columns: int) -> bool:
    """Whether a class has rectangular matrices."""
    try:
        project(torch.zeros(1, 1, rows, columns), ladder.spec(1))
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Size:
    """What is known of a class without the data."""

    parameters: int
    flops: int
    causal: bool  # no member has entries above the diagonal


@cache
def size_of(spec: str, rows: int, columns: int, grid: Grid | None, width: int) -> Size:
    """Free numbers and operations of a class, by the member nearest to the matrix of ones."""
    found = project(torch.ones(1, 1, rows, columns), spec, grid=grid)
    above = found.matrix.to_dense().triu(1)
    return Size(found.parameters, found.matrix.cost(width).flops, rows == columns and not bool(above.any()))


# ------------------------------------------------------------------ the measurement of one site


class Measurement:
    """The matrices of the heads of one site against classes of matrices.

    Args:
        entries: ``(S, H, L_out, L_in)``, on the CPU; one sample where the matrix does not depend on the data.
        grid: of the tokens; None: a sequence, or a matrix that is not square.
        width: columns of the values of a head.
        tolerance: the largest error of a class that is said to fit.
        share: free numbers of an explanation over those of any matrix at all (any causal one where these are causal).
        extra_flops: of what stands beside the matrix and stays, such as the prefix.
    """

    def __init__(
        self, entries: Tensor, grid: Grid | None, width: int, *, tolerance: float, share: float, extra_flops: int = 0
    ) -> None:
        self.entries, self.grid, self.width = entries, grid, width
        self.tolerance, self.extra_flops = tolerance, extra_flops
        self.samples, self.heads, self.rows, self.columns = entries.shape
        mean = entries.double().mean(0, keepdim=True)
        self.norms = torch.stack([torch.linalg.matrix_norm(one.double()).square() for one in entries])  # (S, H)
        size = self.norms.mean(0)
        self.size = size.where(size > 0, 1)
        apart = torch.stack([torch.linalg.matrix_norm(one.double() - mean[0]).square() for one in entries])
        self.spread = apart.mean(0) / self.size  # 0 to 1: the squared variation
        self.centre = torch.linalg.matrix_norm(mean[0]).square() / self.size
        self.mean = mean.to(entries.dtype)
        above = entries.triu(1).double().square().sum((2, 3)).mean(0) if self.rows == self.columns else self.size
        self.above = (above / self.size).sqrt()  # the distance from any causal matrix
        self.causal = self.rows == self.columns > 1 and not bool(above.any())
        whole = self.rows * (self.rows + 1) // 2 if self.causal else self.rows * self.columns
        self.whole, self.most = whole, share * whole
        self.found: list[dict[str, Distance]] = [{} for _ in range(self.heads)]
        self.tried: dict[str, list[int]] = {}  # sizes that all heads were measured at, by class

    def run(self, classes: Sequence[Ladder], tick: Callable[[], None]) -> list[Measured]:
        """Measure all classes, then the sizes between where one would be the smallest; ``tick`` after each class."""
        for ladder in classes:
            self._climb(ladder)
            tick()
        for head in range(self.heads):
            self._narrow(classes, head)
        order = [sorted(found.values(), key=lambda d: (d.parameters, d.flops, d.spec)) for found in self.found]
        variation = self.spread.sqrt().tolist()
        return [Measured(v, tuple(d), self.tolerance) for v, d in zip(variation, order, strict=True)]

    def _size(self, spec: str) -> Size:
        return size_of(spec, self.rows, self.columns, self.grid, self.width)

    def _climb(self, ladder: Ladder) -> None:
        """The sizes from small to large, until all heads fit, none can, or the class would explain nothing."""
        every = list(range(self.heads))
        if not ladder.sizes:
            self._measure(ladder.name, every)
            return
        before = 0
        for at, size in enumerate(self._sizes(ladder)):
            last = self._size(ladder.spec(size)).parameters > self.most
            if last:
                size = self._largest(ladder, before, size)
                if size <= before:
                    return
            spec = ladder.spec(size)
            self._measure(spec, every)
            self.tried.setdefault(ladder.name, []).append(size)
            if last or all(self._fits(head, spec) for head in every):
                return
            if at == 0 and self._size(spec).causal and bool((self.above > self.tolerance).all()):
                return
            before = size

    def _sizes(self, ladder: Ladder) -> Iterator[int]:
        """The regular sizes, then on in their way as long as there are members: a kernel may be wider than an image."""
        yield from ladder.sizes
        size = ladder.sizes[-1]
        while True:
            size = 2 * size - 1 if ladder.step == 2 else 2 * size
            try:
                self._size(ladder.spec(size))
            except ValueError:  # beyond what the class has for so many tokens
                return
            yield size

    def _largest(self, ladder: Ladder, low: int, high: int) -> int:
        """The largest size that still explains something; 0 if none does. ``low`` does (or is 0), ``high`` does not."""
        low = low or ladder.sizes[0] - ladder.step
        while high - low > ladder.step:
            middle = low + (high - low) // (2 * ladder.step) * ladder.step
            small = self._size(ladder.spec(middle)).parameters <= self.most
            low, high = (middle, high) if small else (low, middle)
        return low if low >= ladder.sizes[0] else 0

    def _fits(self, head: int, spec: str) -> bool:
        """Whether no larger size can say more of a head."""
        distance = self.found[head][spec]
        can_be_fixed = bool(self.spread[head].sqrt() <= self.tolerance)
        return (distance.fixed_error if can_be_fixed else distance.error) <= self.tolerance

    def _narrow(self, classes: Sequence[Ladder], head: int) -> None:
        """Between the last size that does not fit and the first that does, wherever that may make it the smallest."""
        found = self.found[head]
        fixed = _smallest(list(found.values()), self.tolerance, fixed=True) is not None

        def fits(spec: str) -> bool:
            return (found[spec].fixed_error if fixed else found[spec].error) <= self.tolerance

        gaps = []
        for ladder in classes:
            known = self.tried.get(ladder.name, [])
            good = next((at for at, size in enumerate(known) if fits(ladder.spec(size))), 0)
            if good and found[ladder.spec(known[good])].explains:
                gaps.append((self._size(ladder.spec(known[good - 1])).parameters, ladder, known[good - 1], known[good]))
        for least, ladder, low, high in sorted(gaps, key=lambda gap: gap[0]):
            best = _smallest(list(found.values()), self.tolerance, fixed=fixed)
            while high - low > ladder.step and best is not None and least < best.parameters:
                middle = low + (high - low) // (2 * ladder.step) * ladder.step
                spec = ladder.spec(middle)
                self._measure(spec, [head])
                low, high = (low, middle) if fits(spec) else (middle, high)
                least = self._size(ladder.spec(low)).parameters
                best = _smallest(list(found.values()), self.tolerance, fixed=fixed)

    def _measure(self, spec: str, heads: list[int]) -> None:
        """The errors of these heads in one class."""
        size = self._size(spec)
        of_mean = project(self.mean[:, heads], spec, grid=self.grid)
        mean_error = of_mean.error[0].double()
        fixed = (self.spread[heads] + self.centre[heads] * mean_error.square()).sqrt()
        own = fixed
        if self.samples > 1:
            at_once = max(1, ENTRIES // (len(heads) * self.rows * self.columns))
            parts = [project(part, spec, grid=self.grid).error for part in self.entries[:, heads].split(at_once)]
            squares = torch.cat(parts).double().square() * self.norms[:, heads]
            own = (squares.mean(0) / self.size[heads]).sqrt()
        for at, head in enumerate(heads):
            self.found[head][spec] = Distance(
                spec,
                size.parameters,
                size.flops + self.extra_flops,
                float(own[at]),
                float(fixed[at]),
                float(mean_error[at]),
                of_mean.exact,
                size.parameters <= self.most,
            )


def tokens_of(grid: Grid | None, columns: int) -> Grid:
    """The grid, or the sequence that the tokens are."""
    return grid if grid is not None and math.prod(grid) == columns else (columns,)
