"""ListOps, the Long Range Arena's: what is the value of a nested list of operators, such as [MAX 2 9 [MIN 4 7 ] 0 ]?

The generator is the published one, number by number (Nangia & Bowman 2018, 1804.06028; lra_benchmarks/data/listops.py
of google-research/long-range-arena): from the same state of Python's generator it draws the same trees. That one keeps
its trees in a set, so which is in which split depends on the hashes of a process; here rows come in the order in which
they are drawn, in blocks with seeds of their own, and neither hashes nor the number of processes change them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from matmix.sampling import stream

TOKENS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "X", "[MAX", "[MED", "[MIN", "[SM")
"""By their number in prepared data; X is the closing bracket, which the release writes as ]."""
CLOSE = TOKENS.index("X")
DRAWN = tuple(TOKENS.index(name) for name in ("[MIN", "[MAX", "[MED", "[SM"))
"""Operators in the order in which the published code draws from them."""
CLASSES = 10
BLOCK = 250
"""Rows that are drawn with one seed."""


class Shape(NamedTuple):
    """Which trees are drawn: `min_length < tokens < max_length`, as published."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


def _median(values: list[int]) -> int:
    """The middle value; of two middle ones the mean without its fraction, as int(numpy.median) gives it."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2


OPERATORS: dict[int, Callable[[list[int]], int]] = {
    TOKENS.index("[MAX"): max,
    TOKENS.index("[MED"): _median,
    TOKENS.index("[MIN"): min,
    TOKENS.index("[SM"): lambda values: sum(values) % 10,
}


class Malformed(ValueError):
    """Tokens that are no nested list."""


def value(tokens: bytes) -> int:
    """The value of a tree.

    Raises:
        Malformed: says at which token it is none.
    """
    open_lists: list[tuple[int, list[int]]] = []
    result: int | None = None
    for at, token in enumerate(tokens):
        if result is not None:
            raise Malformed(f"token {at + 1} of {len(tokens)}, {TOKENS[token]}, stands behind the end of the list")
        if token in OPERATORS:
            open_lists.append((token, []))
            continue
        if token == CLOSE:
            if not open_lists:
                raise Malformed(f"token {at + 1} of {len(tokens)}, {TOKENS[token]}, closes what was never opened")
            operator, values = open_lists.pop()
            if not values:
                raise Malformed(f"token {at + 1} of {len(tokens)}: {TOKENS[operator]} of nothing")
            token = OPERATORS[operator](values)
        if open_lists:
            open_lists[-1][1].append(token)
        else:
            result = token
    if result is None:
        raise Malformed(f"{len(open_lists)} lists are not closed" if open_lists else "it has no token")
    return result


def trees(source: random.Random, max_depth: int, max_args: int) -> Iterator[bytes]:
    """Trees without end, each as its tokens, drawn as published: three of four nodes are digits, the root too; an
    operator is drawn after its arguments, and stands before them."""
    uniform, bits = source.random, source.getrandbits
    spread, last = max_args - 1, max_depth - 1
    # Python's own way to an integer below n: bits.bit_length(n) until it fits. Written out, it is 3 times as fast.
    spread_bits = spread.bit_length()

    def operator(depth: int, out: bytearray) -> None:
        at = len(out)
        out.append(0)
        while (count := bits(spread_bits)) >= spread:
            pass
        for _ in range(count + 2):
            if depth < last and uniform() <= 0.25:
                operator(depth + 1, out)
                continue
            while (digit := bits(4)) >= 10:
                pass
            out.append(digit)
        while (chosen := bits(3)) >= 4:
            pass
        out[at] = DRAWN[chosen]
        out.append(CLOSE)

    while True:
        out = bytearray()
        if max_depth > 1 and uniform() <= 0.25:
            operator(1, out)
        else:
            while (digit := bits(4)) >= 10:
                pass
            out.append(digit)
        yield bytes(out)


def accepted(source: random.Random, shape: Shape, most: int) -> Iterator[bytes]:
    """Trees of the lengths that are wanted, out of the next `most` that are drawn."""
    drawn = trees(source, shape.max_depth, shape.max_args)
    for _ in range(most):
        tree = next(drawn)
        if shape.min_length < len(tree) < shape.max_length:
            yield tree


def block(task: tuple[Shape, int, int]) -> tuple[list[bytes], bytes]:
    """BLOCK different trees and their values for (shape, seed, index), or those among 100,000 draws."""
    shape, seed, index = task
    found: dict[bytes, None] = {}
    for tree in accepted(random.Random(stream(seed, index)), shape, most=400 * BLOCK):
        found[tree] = None
        if len(found) == BLOCK:
            break
    return list(found), bytes(map(value, found))


def draw(
    shape: Shape, count: int, seed: int, each: Callable[..., Iterable[tuple[list[bytes], bytes]]] = map
) -> Iterator[tuple[bytes, int]]:
    """`count` different trees and their values.

    Args:
        each: a `map` over blocks, such as one over processes; in order.

    Raises:
        ValueError: where so few trees have these lengths that no more are found.
    """
    seen: set[bytes] = set()
    index = 0
    while len(seen) < count:
        end = index - (len(seen) - count) // BLOCK  # as many blocks as are needed if no tree comes again
        for trees_, labels in each(block, ((shape, seed, i) for i in range(index, end))):
            before = len(seen)
            for tree, label in zip(trees_, labels, strict=True):
                if tree not in seen and len(seen) < count:
                    seen.add(tree)
                    yield tree, label
            if len(seen) < min(count, before + BLOCK // 20):
                raise ValueError(
                    f"listops: {len(seen):,} of {count:,} different trees with {shape.min_length} < length < "
                    f"{shape.max_length}, depth up to {shape.max_depth} and up to {shape.max_args} arguments were "
                    "found, and hardly any more; allowed: fewer examples, deeper trees, or other lengths"
                )
        index = end
