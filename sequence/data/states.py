"""Rows of the state tracking tasks: word problems over groups, parity, arithmetic without brackets.

Each is drawn in two ways. The published generators (`published_*`) draw example by example from Python's or numpy's
streams and give the very numbers of their code for its seed. `draw_*` give the same distribution for a whole batch.
"""

from __future__ import annotations

import random

import numpy as np

from sequence.data.groups import Group
from sequence.data.labels import IGNORED

ADD, SUBTRACT, MULTIPLY, EQUALS = 1, 2, 3, 4
DIGIT = 5  # the first digit of arithmetic; 0 is padding


# ------------------------------------------------------------------ whole batches


def draw_words(generator: np.random.Generator, count: int, length: int, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Elements drawn evenly, and the products of all prefixes: ``(count, length)`` each."""
    x = generator.integers(group.order, size=(count, length))
    return x, group.prefix_products(x)


def draw_arithmetic(
    generator: np.random.Generator, count: int, length: int, modulus: int
) -> tuple[np.ndarray, np.ndarray]:
    """Digits at even places and operators at odd ones, and what the row is worth up to each digit.

    Labels are values from 0 to m - 1; operators have none (-100). Where a row is to be read at its end alone, it ends
    with a digit, and the published one says ``=`` behind it.
    """
    x = DIGIT + generator.integers(modulus, size=(count, length))
    x[:, 1::2] = generator.integers(ADD, MULTIPLY + 1, size=(count, length // 2))
    y = np.full_like(x, IGNORED)
    y[:, ::2] = running_values(x, modulus)
    return x, y


def running_values(x: np.ndarray, modulus: int) -> np.ndarray:
    """What rows ``digit operator digit ...`` are worth modulo m up to each digit; ``*`` binds first."""
    total, term = np.zeros(len(x), dtype=np.int64), x[:, 0] - DIGIT
    found = [term]
    for place in range(2, x.shape[1], 2):
        operator, digit = x[:, place - 1], x[:, place] - DIGIT
        times = operator == MULTIPLY
        total = np.where(times, total, (total + term) % modulus)
        term = np.where(times, term * digit, np.where(operator == SUBTRACT, -digit, digit)) % modulus
        found.append((total + term) % modulus)
    return np.stack(found, 1)


# ------------------------------------------------------------------ as published


def published_words(group: Group, length: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of jopetty/word-problem for ``random.seed(seed)``: ``count`` different ones, here in sorted order.

    Their file has the order of a Python set, which is no order.
    """
    if count > group.order**length:
        raise ValueError(f"{group.name} has {group.order**length} words of length {length}, fewer than {count}")
    stream = random.Random(seed)
    rows: set[tuple[int, ...]] = set()
    while len(rows) < count:
        rows.add(tuple(stream.choices(range(group.order), k=length)))
    x = np.array(sorted(rows), dtype=np.int64)
    return x, group.prefix_products(x)


def published_formal(
    kind: str,
    count: int,
    shortest: int,
    longest: int,
    context: int,
    *,
    split: int = 0,
    seed: int = 42,
    modulus: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels ``(count, context - 1)`` of xLSTM's formal languages, as arXiv 2411.12537 uses them.

    Rows have lengths from ``shortest`` to ``longest``, are padded with 0, and have one label: where the last token
    stands. Parity has bits 1 and 2 and the answers 1 and 2; arithmetic ends with ``=``, its answers are digits.

    Args:
        kind: "parity" or "arithmetic".
        split: 0, 1, 2 for train, validation and test, each with a stream of its own.
    """
    if kind not in ("parity", "arithmetic"):
        raise ValueError(f"kind must be 'parity' or 'arithmetic', got {kind!r}")
    splits = random.Random(seed)
    own = [splits.randint(0, 1 << 32) for _ in range(3)][split]
    base = int(np.random.default_rng(own).integers((1 << 32) - count))
    x = np.zeros((count, context), dtype=np.int64)
    y = np.full((count, context - 1), -1, dtype=np.int64)
    for row in range(count):
        stream = np.random.default_rng(base + row)
        if kind == "parity":
            tokens = stream.integers(1, 3, size=context - 1)
            size = int(stream.integers(shortest, longest + 1))
            x[row, : size - 1] = tokens[: size - 1]
            y[row, size - 2] = 1 + (x[row] == 2).sum() % 2
            continue
        tokens = stream.integers(modulus, size=context) + DIGIT
        tokens[1::2] = stream.integers(3, size=context // 2) + ADD
        size = 2 * int(stream.integers((shortest + 1) // 2, (longest + 1) // 2 + 1)) - 1
        x[row, : size - 2] = tokens[: size - 2]
        x[row, size - 2] = EQUALS
        y[row, size - 2] = DIGIT + running_values(tokens[None, : size - 2], modulus)[0, -1]
    return x[:, :-1], y


def published_parity(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits, and the parity of all up to each, of zoology's circuits: ``(count, length - 1)``.

    Its task with one label says a token 2 behind the same bits, and the last of these parities there.
    """
    stream = np.random.RandomState(seed)
    x = np.stack([stream.randint(0, 2, size=length - 1) for _ in range(count)])
    return x, x.cumsum(1) % 2
