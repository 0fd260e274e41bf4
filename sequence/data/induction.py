"""Induction heads, as H3 and Hyena use them (arXiv 2212.14052, 2302.10866; the code of safari).

    a b => c d e ... =>  and the answer is c: what stood behind the same trigger before

Half of the rows have one trigger, the others up to `triggers`, each with the same tokens behind it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sequence.data.labels import IGNORED


def check_induction(vocabulary: int, length: int, answer: int, triggers: int) -> None:
    """Room for a trigger with its answer, and for tokens that are neither of the two special ones."""
    if vocabulary < 3:
        raise ValueError(f"induction: vocabulary must be at least 3 (two tokens are special), got {vocabulary}")
    if answer < 1 or length < answer + 2:
        raise ValueError(f"induction: answer must be from 1 to length - 2 = {length - 2}, got {answer}")
    if triggers < 1:
        raise ValueError(f"induction: triggers must be at least 1, got {triggers}")


def induction_rows(
    random: np.random.Generator, count: int, vocabulary: int, length: int, answer: int = 1, triggers: int = 1
) -> Tensor:
    """Rows (count, length + 1 + answer) of the published generator, in the order in which it draws them.

    Token 0 is the published ".", which never occurs, the last one the trigger. Published ids are the order of the
    numbers as text; that is a renaming of ids 1 to V - 2, which are drawn uniformly, so it changes no row.
    The published sets are these rows without doubles, in the order that `torch.unique` and a shuffle give: it differs
    from version to version of torch, so sets here keep the first of each and this order.
    """
    check_induction(vocabulary, length, answer, triggers)
    trigger = vocabulary - 1
    # As published: draws among all tokens by weight, which are read off the cumulative sum.
    weights = np.full(vocabulary, 1 / (vocabulary - 2))
    weights[[0, trigger]] = 0
    rows = np.empty((count, length + 1 + answer), dtype=np.int64)
    for row in rows:
        row[:length] = random.choice(vocabulary, length, replace=True, p=weights)
        row[length] = trigger
        places = random.integers(length - 1 - answer, size=1 if random.uniform() < 0.5 else triggers)
        kept: list[int] = []
        for place in sorted(places.tolist()):
            if not kept or place - kept[-1] > answer:
                kept.append(place)
        copied = row[kept[0] + 1 : kept[0] + 1 + answer].copy()
        for place in kept:
            row[place], row[place + 1 : place + 1 + answer] = trigger, copied
        row[length + 1 :] = copied
    return torch.from_numpy(rows)


def shifted(rows: Tensor, answer: int, *, train: bool) -> tuple[Tensor, Tensor]:
    """Inputs and next tokens (n, length + answer). All are learnt; a test scores the answer alone."""
    x, y = rows[:, :-1], rows[:, 1:].clone()
    if not train:
        y[:, :-answer] = IGNORED
    return x, y


@cache
def induction(
    count: int, vocabulary: int, length: int, answer: int = 1, triggers: int = 1, *, seed: int = 0, train: bool = True
) -> tuple[Tensor, Tensor]:
    """`count` different examples for a seed."""
    random = np.random.default_rng(seed)
    found: dict[bytes, Tensor] = {}
    while len(found) < count:
        before = len(found)
        for row in induction_rows(random, count, vocabulary, length, answer, triggers):
            found.setdefault(row.numpy().tobytes(), row)
        if len(found) == before:
            raise ValueError(
                f"induction: only {before} different rows found with vocabulary={vocabulary} and length={length}; "
                f"{count} were asked for"
            )
    return shifted(torch.stack(list(found.values())[:count]), answer, train=train)
