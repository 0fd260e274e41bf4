"""The classes of matrices a second time, as maps from free numbers to entries: what projections are held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH = 6


@dataclass(frozen=True)
class Family:
    """A class over six tokens: ``build`` makes the entries of a member (6, 6) from tensors of these sizes."""

    spec: str
    sizes: tuple[tuple[int, ...], ...]
    build: Callable[..., Tensor]
    grid: tuple[int, ...] = (LENGTH,)
    starts: int = 1  # descents to find the optimum: one where the class is a linear space
    scales: bool = True  # a multiple of a member is one

    def __str__(self) -> str:
        return f"{self.spec}-{'x'.join(map(str, self.grid))}"

    @property
    def name(self) -> str:
        return self.spec.split("(")[0]

    def draw(self) -> list[Tensor]:
        return [torch.randn(size, dtype=torch.float64) for size in self.sizes]

    def nearest(self, target: Tensor) -> Tensor:
        """The nearest member that descents over the free numbers find."""
        best = None
        for _ in range(self.starts):
            numbers = [part.requires_grad_() for part in self.draw()]
            optimiser = torch.optim.LBFGS(
                numbers, max_iter=600, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
            )

            def loss(numbers: list[Tensor] = numbers) -> Tensor:
                for part in numbers:
                    part.grad = None
                total = (self.build(*numbers) - target).square().sum()
                total.backward()
                return total

            optimiser.step(loss)
            with torch.no_grad():
                member = self.build(*numbers).detach()
            if best is None or (member - target).norm() < (best - target).norm():
                best = member
        assert best is not None
        return best


def _places(grid: tuple[int, ...]) -> Tensor:
    """``i - j`` along each axis, (6, 6, axes)."""
    here = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(LENGTH, -1)
    return here[:, None] - here[None]


def _inside(grid: tuple[int, ...], width: int) -> Tensor:
    return (_places(grid).abs() <= width // 2).all(2)


def _taps(grid: tuple[int, ...], width: int | None = None) -> Callable[[Tensor], Tensor]:
    def build(taps: Tensor) -> Tensor:
        lags = _places(grid)
        spans = taps.shape
        index = tuple(lags[..., axis] % spans[axis] for axis in range(len(grid)))
        inside = torch.ones(LENGTH, LENGTH, dtype=torch.bool) if width is None else _inside(grid, width)
        return taps[index] * inside

    return build


def _monarch(left: Tensor, right: Tensor) -> Tensor:
    entries = torch.zeros(2, 3, 2, 3, dtype=left.dtype)
    for row in range(2):
        for column in range(3):
            block = torch.outer(left[column, :, row], right[row, column])
            mask = torch.zeros_like(entries)
            mask[:, column, row, :] = 1
            entries = entries + mask * block[:, None, None, :]
    return entries.reshape(LENGTH, LENGTH)


def _triangle(outputs: Tensor, inputs: Tensor, transitions: Tensor) -> Tensor:
    """``C_i A_i ... A_{j+1} B_j``, entry by entry."""
    length = outputs.shape[0]
    rows = []
    for i in range(length):
        row, reader = [torch.zeros((), dtype=outputs.dtype)] * length, outputs[i]
        for j in range(i, -1, -1):
            row[j] = reader @ inputs[j]
            reader = reader @ transitions[j]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _two_triangles(*parts: Tensor) -> Tensor:
    lower, upper = _triangle(*parts[:3]), _triangle(*parts[3:6])
    below, above = (torch.nn.functional.pad(part, (0, 1, 1, 0)) for part in (lower, upper))
    return below + above.mT + torch.diag(parts[6])


def _generators(length: int, order: int) -> tuple[tuple[int, ...], ...]:
    return ((length, order), (length, order), (length, order, order))


def _stochastic(numbers: Tensor) -> Tensor:
    return numbers.square() / numbers.square().sum(1, keepdim=True)


_ONES = torch.ones(LENGTH, LENGTH, dtype=torch.float64)
_BLOCKS = torch.block_diag(torch.ones(4, 4), torch.ones(2, 2))
IMAGE = (2, 3)
FAMILIES = [
    Family("dense", ((6, 6),), lambda m: m),
    Family("identity", ((),), lambda a: a * torch.eye(LENGTH, dtype=torch.float64)),
    Family("diagonal", ((6,),), torch.diag),
    Family("uniform", ((),), lambda a: a * _ONES),
    Family("equal_rows", ((6,),), lambda w: w.expand(LENGTH, LENGTH)),
    Family("causal", ((6, 6),), torch.tril),
    Family("block_diagonal(4)", ((6, 6),), lambda m: m * _BLOCKS),
    Family("banded(width=3)", ((6, 6),), lambda m: m * _inside((6,), 3)),
    Family("banded(3)", ((6, 6),), lambda m: m * _inside(IMAGE, 3), IMAGE),
    Family("toeplitz", ((11,),), _taps((6,))),
    Family("toeplitz", ((3, 5),), _taps(IMAGE), IMAGE),
    Family("sequence_toeplitz", ((11,),), _taps((6,)), IMAGE),
    Family("causal_toeplitz", ((11,),), lambda t: _taps((6,))(t).tril()),
    Family("circulant", ((6,),), _taps((6,))),
    Family("circulant", ((2, 3),), _taps(IMAGE), IMAGE),
    Family("convolution(5)", ((11,),), _taps((6,), 5)),
    Family("convolution(kernel=3)", ((3, 5),), _taps(IMAGE, 3), IMAGE),
    Family("low_rank(2)", ((6, 2), (2, 6)), torch.matmul, starts=3),
    Family("kron", ((2, 2), (3, 3)), torch.kron, IMAGE, starts=4),
    Family("kron(3, 2)", ((3, 3), (2, 2)), torch.kron, starts=4),
    Family(
        "kron(terms=2)",
        ((2, 2), (3, 3), (2, 2), (3, 3)),
        lambda a, b, c, d: torch.kron(a, b) + torch.kron(c, d),
        IMAGE,
        starts=4,
    ),
    Family("monarch", ((3, 2, 2), (2, 3, 3)), _monarch, starts=4),
    Family("row_stochastic", ((6, 6),), _stochastic, starts=4, scales=False),
    Family("semiseparable(2)", _generators(6, 2), _triangle, starts=3),
    Family("quasiseparable(1)", (*_generators(5, 1), *_generators(5, 1), (6,)), _two_triangles, starts=3),
]
assert all(math.prod(family.grid) == LENGTH for family in FAMILIES)
