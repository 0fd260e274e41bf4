"""Multi-query associative recall (MQAR), as Zoology defines it (Arora et al. 2023, arXiv 2312.04927, section 4).

    key value key value ...  |  queries: the keys again, in random even slots; the label there is the key's value

and two of its variants, which Zoology's code has and no paper describes:

- compositional: the key is a pair of tokens, every one of g first with every one of g second tokens, so that neither
  half says which value is meant;
- forgetting: some keys come again with another value, and the newest one counts.

Fixed sets are the very numbers of the published generators for their seeds: numpy's legacy generator, row by row, in
the order of the lines below. Fillers came from torch's global generator, which their seed did not reach; here they
follow from the seed as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from sequence.data.draws import Batched, Draws, Legacy
from sequence.data.labels import IGNORED

# ------------------------------------------------------------------ conditions


def check_mqar(vocabulary: int, length: int, pairs: int) -> None:
    """The published conditions: even length below the vocabulary, room for every query."""
    _check_length(vocabulary, length)
    if pairs < 1 or 4 * pairs > length:
        raise ValueError(f"recall: pairs must be from 1 to length/4 = {length // 4}, got {pairs}")
    _check_keys(vocabulary, pairs)


def check_compositional(vocabulary: int, length: int, pairs: int) -> None:
    """Two tokens a key, three a pair: six for each pair and its query."""
    if vocabulary <= length:
        raise ValueError(f"recall: vocabulary must be larger than length={length}, got {vocabulary}")
    if pairs < 1 or isqrt(pairs) ** 2 != pairs:
        raise ValueError(f"recall: pairs of compositional keys must be a square number, got {pairs}")
    if 6 * pairs > length:
        raise ValueError(
            f"recall: pairs must be at most length/6 = {length // 6} with compositional keys and length={length}, got "
            f"{pairs}"
        )
    third = vocabulary // 3
    if isqrt(pairs) > third - 1 or pairs > vocabulary - 2 * third:
        raise ValueError(
            f"recall: vocabulary={vocabulary} has {third - 1} half keys and {vocabulary - 2 * third} values, "
            f"too few for pairs={pairs}"
        )


def check_forgetting(vocabulary: int, length: int, pairs: int, updates: int) -> None:
    """Two tokens for every pair, every update and every query."""
    _check_length(vocabulary, length)
    if pairs < 1 or not 0 <= updates <= pairs:
        raise ValueError(f"recall: updates must be from 0 to pairs={pairs}, got {updates}")
    if 4 * pairs + 2 * updates > length:
        raise ValueError(
            f"recall: {pairs} pairs, {updates} updates and {pairs} queries need a length of "
            f"{4 * pairs + 2 * updates}, got {length}"
        )
    _check_keys(vocabulary, pairs)


def _check_length(vocabulary: int, length: int) -> None:
    if length % 2 or length < 2:
        raise ValueError(f"recall: length must be even, got {length}")
    if vocabulary <= length:
        raise ValueError(f"recall: vocabulary must be larger than length={length}, got {vocabulary}")


def _check_keys(vocabulary: int, pairs: int) -> None:
    if pairs > vocabulary // 2 - 1:
        raise ValueError(f"recall: vocabulary={vocabulary} has {vocabulary // 2 - 1} keys, fewer than pairs={pairs}")


# ------------------------------------------------------------------ what is drawn, in the published order


def plain(draws: Draws, count: int, vocabulary: int, length: int, pairs: int, power: float) -> tuple[Tensor, Tensor]:
    """Keys are 1 to V/2 - 1, values V/2 to V - 1; no token twice."""
    check_mqar(vocabulary, length, pairs)
    half = vocabulary // 2
    keys = 1 + draws.subsets(count, half - 1, pairs)
    values = half + draws.subsets(count, vocabulary - half, pairs)
    slots = _slots(draws, count, (length - 2 * pairs) // 2, pairs, power)
    return _place(_interleave(keys, values), keys[..., None], values, slots, length)


def compositional(
    draws: Draws, count: int, vocabulary: int, length: int, pairs: int, power: float
) -> tuple[Tensor, Tensor]:
    """First halves are 1 to V/3 - 1, second halves V/3 to 2V/3 - 1, values the rest; `pairs` is a square.

    A triplet k1 k2 value for every pair; a query is k1 k2, and its label stands at k2.
    """
    check_compositional(vocabulary, length, pairs)
    third, side = vocabulary // 3, isqrt(pairs)
    first = 1 + draws.subsets(count, third - 1, side)
    second = third + draws.subsets(count, third, side)
    cell = draws.subsets(count, pairs, pairs)  # of the grid of halves, row by row of `first`
    keys = np.stack(
        [np.take_along_axis(first, cell // side, axis=1), np.take_along_axis(second, cell % side, axis=1)], axis=-1
    )
    values = 2 * third + draws.subsets(count, vocabulary - 2 * third, pairs)
    slots = _slots(draws, count, (length - 3 * pairs) // 3, pairs, power)
    context = np.concatenate([keys, values[..., None]], axis=-1).reshape(count, 3 * pairs)
    return _place(context, keys, values, slots, length)


def forgetting(
    draws: Draws, count: int, vocabulary: int, length: int, pairs: int, power: float, updates: int
) -> tuple[Tensor, Tensor]:
    """`updates` of the keys come again behind the pairs, with another value; the label is the newest one.

    As published, the new value j is one that key j did not have, and then it is given to a key drawn anew: an update
    may repeat the value that its key has already (2.3 % of them with 64 tokens). The label is right all the same.
    """
    check_forgetting(vocabulary, length, pairs, updates)
    half = vocabulary // 2
    keys = 1 + draws.subsets(count, half - 1, pairs)
    values = draws.subsets(count, vocabulary - half, pairs)
    others = draws.below(vocabulary - half - 1, (count, updates))
    others = others + (others >= values[:, :updates])  # all values but that of key j
    updated = draws.subsets(count, pairs, updates)
    newest = values.copy()
    np.put_along_axis(newest, updated, others, axis=1)
    slots = _slots(draws, count, (length - 2 * (pairs + updates)) // 2, pairs, power)
    again = np.take_along_axis(keys, updated, axis=1)
    context = np.concatenate([_interleave(keys, half + values), _interleave(again, half + others)], axis=1)
    return _place(context, keys[..., None], half + newest, slots, length)


def _slots(draws: Draws, count: int, slots: int, pairs: int, power: float) -> np.ndarray:
    """Slot of every query: r = 1, 2, ... has weight power * r^(power - 1), so a small power is early and 1 uniform."""
    weights = power * np.arange(1, slots + 1) ** (power - 1)
    return draws.subsets(count, slots, pairs, weights / weights.sum())


def _interleave(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([keys, values], axis=-1).reshape(len(keys), -1)


def _place(
    context: np.ndarray, queries: np.ndarray, values: np.ndarray, slots: np.ndarray, length: int
) -> tuple[Tensor, Tensor]:
    """The context (n, C), then each query (n, pairs, tokens) in its slot, its value the label of its last token.

    A slot is as long as a pair of the context: the query and one place more, which stays free.
    """
    count, _, tokens = queries.shape
    x = np.zeros((count, length), dtype=np.int64)
    y = np.full((count, length), IGNORED, dtype=np.int64)
    x[:, : context.shape[1]] = context
    start = context.shape[1] + (tokens + 1) * slots
    for index in range(tokens):
        np.put_along_axis(x, start + index, queries[..., index], axis=1)
    np.put_along_axis(y, start + tokens - 1, values, axis=1)
    return torch.from_numpy(x), torch.from_numpy(y)


# ------------------------------------------------------------------ sets of examples

Generator = Callable[..., tuple[Tensor, Tensor]]


@cache
def fixed(
    generator: Generator, count: int, vocabulary: int, length: int, pairs: int, power: float, *more: int,
    fill: bool, seed: int, fill_seed: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs and labels (count, length), int64, the very numbers of the published generator for its seed.

    Fillers are those that it gives where torch was seeded with `fill_seed` before (absent: with `seed`).
    """
    x, y = generator(Legacy(seed), count, vocabulary, length, pairs, power, *more)
    if fill:
        seeded = torch.Generator().manual_seed(seed if fill_seed is None else fill_seed)
        filler = torch.randint(vocabulary, x.shape, generator=seeded)
        x = torch.where(x == 0, filler, x)
    return x, y


def fresh(
    generator: Generator, random: np.random.Generator, count: int, vocabulary: int, length: int, pairs: int,
    power: float, *more: int, fill: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same distribution, a whole batch at once."""
    x, y = generator(Batched(random), count, vocabulary, length, pairs, power, *more)
    if fill:
        x = torch.where(x == 0, torch.from_numpy(random.integers(vocabulary, size=x.shape)), x)
    return x, y


def pairs_asked(x: Tensor, y: Tensor, pairs: int, tokens: int = 1) -> tuple[Tensor, Tensor]:
    """Position of every label, and which pair of the context, with keys of so many tokens, it asks for."""
    row, position = (y != IGNORED).nonzero(as_tuple=True)
    back = torch.arange(1 - tokens, 1)
    asked = x[row[:, None], position[:, None] + back]  # (n, tokens)
    keys = x[:, : (tokens + 1) * pairs].unflatten(1, (pairs, tokens + 1))[row, :, :tokens]  # (n, pairs, tokens)
    return position, (keys == asked[:, None]).all(-1).int().argmax(1)
