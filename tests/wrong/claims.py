"""A class that has each property, and one that only says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matmix.matrices import Dense, Matrix, Monarch
from matmix.mixers import Grid


def claim(word: str, name: str, entries: Callable[[int], Tensor], **facts: Any) -> type[Matrix]:
    """A dense matrix with the given entries that says it has a property."""

    def example(cls: Any, grid: Grid, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Any:
        return cls(entries(math.prod(grid)).to(dtype).expand(batch, heads, -1, -1))

    body = {"properties": frozenset({word}), "example": classmethod(example), "__module__": __name__, **facts}
    return type(f"{name}_{word}", (Dense,), body)


def _gaps(length: int) -> Tensor:
    place = torch.arange(length)
    return (place[:, None] - place).double()


def _exponents(length: int) -> Tensor:
    """``0.9^|i - j|``: symmetric, Toeplitz, of rank 1 below and above the diagonal."""
    return 0.9 ** _gaps(length).abs()


def _shift(length: int) -> Tensor:
    return torch.eye(length).double().roll(1, 0)


def _sines(length: int) -> Tensor:
    """Full rank everywhere, no symmetry."""
    return torch.sin(1 + _gaps(length) ** 2 + torch.arange(length))


def _cosines(length: int) -> Tensor:
    """A frequency a row."""
    place = torch.arange(length).double()
    return torch.cos(place[:, None] * place * 0.37)


def _monarch(length: int) -> Tensor:
    """Rows of a grid, then its columns, by one block each."""
    rows, columns = Monarch.split(length)
    return torch.kron(_sines(rows), torch.eye(columns).double()) @ torch.kron(torch.eye(rows).double(), _sines(columns))


_ones: Callable[[int], Tensor] = lambda length: torch.ones(length, length, dtype=torch.float64)  # fmt: skip
_wrong_by_one: Callable[[int], Tensor] = lambda length: _exponents(length).tril() + 1e-6 * _shift(length).mT

CLAIMS: dict[str, tuple[type[Matrix], type[Matrix]]] = {
    word: (claim(word, "Is", right, **facts), claim(word, "IsNot", wrong, **facts))
    for word, right, wrong, facts in [
        ("causal", lambda n: _sines(n).tril(), _wrong_by_one, {}),
        ("row_stochastic", lambda n: _sines(n).softmax(-1), lambda n: _sines(n).softmax(-2), {}),
        ("symmetric", _exponents, lambda n: _exponents(n).tril(), {}),
        ("orthogonal", lambda n: torch.linalg.qr(_sines(n))[0], lambda n: 1.01 * _shift(n), {}),
        ("permutation", _shift, lambda n: _shift(n).cummax(1)[0].tril().triu() + 0 * _shift(n), {}),
        ("selection", lambda n: _shift(n)[torch.zeros(n, dtype=torch.long)], lambda n: _shift(n) + _shift(n).mT, {}),
        ("diagonal", lambda n: _sines(n).diag().diag(), lambda n: _shift(n), {}),
        ("toeplitz", _exponents, lambda n: _exponents(n) * torch.arange(1.0, n + 1), {}),
        ("circulant", lambda n: _shift(n) + 2 * _shift(n) @ _shift(n), _exponents, {}),
        ("banded", lambda n: _sines(n).tril(2).triu(-2), lambda n: _sines(n).tril(3).triu(-2), {"bandwidth": 2}),
        ("low_rank", lambda n: _sines(n)[:, :3] @ _sines(n)[:3], _sines, {"order": 3}),
        ("semiseparable", lambda n: _exponents(n).tril(), lambda n: _sines(n).tril(), {"order": 1}),
        ("quasiseparable", _exponents, lambda n: _exponents(n).tril() + _sines(n).triu(1), {"order": 1}),
        ("vandermonde", _cosines, lambda n: _cosines(n) + 1e-3 * _sines(n), {"order": 2}),
        ("monarch", _monarch, _sines, {"grid": property(lambda self: Monarch.split(self.entries.shape[-1]))}),
    ]
}
"""property -> (class that has it, class that only says so)."""

UNKNOWN_WORD = claim("magical", "Says", _exponents)
NO_ORDER = claim("low_rank", "Unstated", _ones)
