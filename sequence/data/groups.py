"""Finite groups as tables, numbered as the published word problems number them (arXiv 2404.08819).

Z60             0 to 59, added modulo 60
S3, A5          (even) permutations of 1 to n, in the order of a dictionary; 0 is the identity
A4xZ5, S3xS3    products: (i, j) has the number i |H| + j
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from functools import cache

import numpy as np

LARGEST = 5040
"""Elements of the largest group that is built, S7: its table has 25 million entries."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A group of n elements; 0 is the identity."""

    name: str
    table: np.ndarray  # (n, n) int64: table[a, b] = a * b, where b acts first on points

    @property
    def order(self) -> int:
        """How many elements."""
        return len(self.table)

    def prefix_products(self, x: np.ndarray) -> np.ndarray:
        """``x_1, x_1 * x_2, x_1 * x_2 * x_3, ...`` of rows of elements ``(count, length)``."""
        found = np.empty_like(x)
        last = np.zeros(len(x), dtype=np.int64)
        for place in range(x.shape[1]):
            found[:, place] = last = self.table[last, x[:, place]]
        return found


@cache
def group(name: str) -> Group:
    """The group of a name: ``Z``, ``S`` or ``A`` with a number, several with ``x`` or ``_x_`` between them.

    Raises:
        ValueError: for another name, or a group of more than 5,040 elements.
    """
    parts = re.split(r"_?x_?", name)
    if not all(re.fullmatch(r"[ZSA][1-9]\d{0,3}", part) for part in parts):
        raise ValueError(
            f"a group is Zn, Sn or An, or several with x between them, such as Z60, A5 or A4xZ5; got {name!r}"
        )
    order = int(np.prod([_order(part) for part in parts], dtype=object))
    if order > LARGEST:
        raise ValueError(f"{name} has {order} elements; groups of up to {LARGEST} are built")
    table = _table(parts[0])
    for part in parts[1:]:
        other = _table(part)
        size = len(table) * len(other)
        # (a, b) (c, d) = (a c, b d)
        table = (table[:, None, :, None] * len(other) + other[None, :, None, :]).reshape(size, size)
    return Group(name, table)


def permutations(size: int, *, even: bool = False) -> np.ndarray:
    """All (or the even) permutations of 0 to n - 1, in the order of a dictionary: ``(count, n)``."""
    found = np.array(list(itertools.permutations(range(size))), dtype=np.int64)
    if not even:
        return found
    inversions = sum((found[:, i] > found[:, j]).astype(np.int64) for i in range(size) for j in range(i + 1, size))
    return found[np.broadcast_to(inversions % 2 == 0, len(found))]


def _order(part: str) -> int:
    size = int(part[1:])
    if part[0] == "Z":
        return size
    count = int(np.prod(np.arange(1, size + 1), dtype=object))
    return count if part[0] == "S" or size == 1 else count // 2


def _table(part: str) -> np.ndarray:
    kind, size = part[0], int(part[1:])
    if kind == "Z":
        return (np.arange(size)[:, None] + np.arange(size)) % size
    elements = permutations(size, even=kind == "A")
    digits = size ** np.arange(size - 1, -1, -1)  # as a number to base n, a permutation keeps its order
    numbers = elements @ digits
    # (a * b)(i) = a(b(i)): row by row, since all at once would hold n^2 permutations.
    return np.stack([np.searchsorted(numbers, element[elements] @ digits) for element in elements])
