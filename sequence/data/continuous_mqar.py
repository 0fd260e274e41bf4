"""Associative recall over vectors instead of tokens, as Zoology's code has it (no paper describes it).

A position is a pair side by side, [vector of the key | vector of its value]; a query has zeros for the value. So one
layer that compares keys is enough: nothing has to move a key next to its value first. The tables of vectors are fixed
and random; a prediction is scored against the table of values.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def check_continuous(vocabulary: int, pairs: int, passes: int) -> None:
    """As many keys as values, each in half of the vocabulary."""
    if vocabulary < 2 or vocabulary % 2:
        raise ValueError(f"mqar-continuous: vocabulary must be even, half keys and half values, got {vocabulary}")
    if not 1 <= pairs <= vocabulary // 2:
        raise ValueError(f"mqar-continuous: pairs must be from 1 to vocabulary/2 = {vocabulary // 2}, got {pairs}")
    if passes < 1:
        raise ValueError(f"mqar-continuous: passes must be at least 1, got {passes}")


@cache
def continuous_rows(
    count: int, vocabulary: int, pairs: int, passes: int = 1, *, own_mapping: bool = True, seed: int = 42
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of keys and of values (count, (passes + 1) * pairs), and labels (count, pairs), all counted from 0.

    The numbers of the published generator for its seed, which it gave to torch's global generator: keys, values, which
    belongs to which, the order of each pass, the order of the queries. The last `pairs` positions are queries; their
    values are -1 here. With `own_mapping=False` the permutation between chosen keys and chosen values is that of the
    first example, as published; since both are chosen anew every time, nothing can be remembered from one example to
    the next.
    """
    check_continuous(vocabulary, pairs, passes)
    generator = torch.Generator().manual_seed(seed)

    def permutation(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    keys = torch.empty(count, passes + 1, pairs, dtype=torch.int64)
    values = torch.full_like(keys, -1)
    labels = torch.empty(count, pairs, dtype=torch.int64)
    mapping = torch.arange(pairs)
    for row in range(count):
        key, value = (permutation(vocabulary // 2)[:pairs] for _ in range(2))
        if own_mapping or row == 0:
            mapping = permutation(pairs)
        value = value[mapping]  # of each chosen key
        for index in range(passes):
            order = permutation(pairs)
            keys[row, index], values[row, index] = key[order], value[order]
        order = permutation(pairs)
        keys[row, -1], labels[row] = key[order], value[order]
    return keys.flatten(1), values.flatten(1), labels


def vectors(vocabulary: int, width: int, seed: int) -> Tensor:
    """Fixed vectors of length 1, uniform on the sphere: half of them keys, half values, (2, vocabulary / 2, width)."""
    table = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(table, dim=-1).unflatten(0, (2, -1))


def laid_out(keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Positions [key | value] (count, L, 2 * width); zeros where a value is -1."""
    value = table[1][values.clamp(min=0)] * (values >= 0).unsqueeze(-1)
    return torch.cat([table[0][keys], value], dim=-1)
