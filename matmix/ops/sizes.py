"""Sizes that may be open: how to ask about them without an answer that holds for one size only.

An exporter, or a compiler of dynamic shapes, runs a forward with a symbol where a batch or a length stands. Every
answer that hangs on the symbol becomes a condition of the program: a forward that asks "fewer than 32 tokens?" to take
the faster way becomes a program for fewer than 32 tokens, or no program at all. So whatever only decides how fast a
result comes about is asked here, and whatever needs a number (a loop over chunks, a fast FFT length) first asks whether
the size is one. Sets and dictionaries of sizes ask whether sizes are equal to each other and hash them, which a symbol
refuses: compare instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LengthError(ValueError):
    """A model was built for another number of tokens than it got.

    Mixers of a fixed length raise it; so does any module that cannot take a length, such as learned positions that end
    before it. A run notes it of a further test (a test at twice the length, say) and goes on.
    """


def known(*sizes: int) -> bool:
    """Whether all of these sizes are numbers, not symbols of a compiler or an exporter."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental import symbolic_shapes  # brings sympy, of which import knows nothing

    if not hasattr(symbolic_shapes, "has_static_value"):  # torch 2.6, where a compiled program is of its sizes alone
        return torch.compiler.is_dynamo_compiling() or all(symbolic_shapes.is_concrete_int(size) for size in sizes)
    return all(symbolic_shapes.has_static_value(size) for size in sizes)


def surely(condition: bool) -> bool:
    """A comparison of sizes of which no result depends, such as a threshold of speed; False where it is open."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental import symbolic_shapes

    if not hasattr(symbolic_shapes, "has_static_value") and torch.compiler.is_dynamo_compiling():
        return condition
    return bool(symbolic_shapes.statically_known_true(condition))


def exporting() -> bool:
    """Whether an exporter runs the forward; torch 2.6 does not tell, and exports as it compiles."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def larger(*sizes: int) -> int:
    """The largest of sizes; without a condition where one is open."""
    if known(*sizes):
        return max(sizes)
    largest: Any = sizes[0]
    for size in sizes[1:]:
        largest = torch.sym_max(largest, size)
    return largest


def smaller(*sizes: int) -> int:
    """The least of sizes; without a condition where one is open."""
    return min(sizes) if known(*sizes) else -larger(*(-size for size in sizes))


def joint(sizes: Iterable[int]) -> int:
    """The common size of things of which some may have 1: the first other one."""
    for size in sizes:  # a next() with a default, which says the same, is more than torch 2.6 can compile
        if size != 1:
            return size
    return 1


def joint_batch(parts: Iterable[Tensor | None]) -> int:
    """The batch of parts of which some may have 1."""
    return joint([part.shape[0] for part in parts if part is not None])


def all_samples(parts: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Parts of which some may have a batch of 1, each with that of all."""
    batch = joint_batch(parts)
    return tuple(t if t is None or t.shape[0] == batch else t.expand(batch, *t.shape[1:]) for t in parts)


def blocks(length: int, block: int) -> list[tuple[int, int]]:
    """Start and end of blocks of at most ``block`` of ``length`` things; one block where the length is open."""
    if not known(length):
        return [(0, length)]
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def whole(length: int, size: int) -> int:
    """How many chunks of a size hold a length; where it is open one more, at least two.

    So a single chunk, which a tracer would take for a special case, does not occur; and written as one quotient the
    number divides the padded length by the rules that the tracer knows.
    """
    return -(-length // size) if known(length) else (length + 2 * size - 1) // size


def modulo(index: Tensor, size: int) -> Tensor:
    """``index % size``; where the size is open by a quotient, as ONNX's exporter knows no remainder by a symbol."""
    return index % size if known(size) else index - index // size * size


def first_entries(tensor: Tensor, axis: int, count: int) -> Tensor:
    """The first ``count`` along an axis; the tensor itself where that is all (a slice costs two passes backward)."""
    if known(count, tensor.shape[axis]):
        return tensor if tensor.shape[axis] == count else tensor.narrow(axis, 0, count)
    # A slice would ask whether it fits, and a quotient in an inequality is more than an exporter can reason about.
    return tensor.index_select(axis, torch.arange(count, device=tensor.device))


def joined(chunks: Tensor, axis: int, count: int) -> Tensor:
    """Chunks ``(..., Z, Q, ...)`` in a row, ``(..., count, ...)``, without the tail; Z stands at ``axis``."""
    return first_entries(chunks.flatten(axis, axis + 1), axis, count)


def power_of_two(size: int) -> int:
    """The least power of two from a known size on; ``torch.jit.trace`` has sizes as tensors, of which it keeps this."""
    return 1 << max(0, int(size) - 1).bit_length()


def is_size(size: object) -> bool:
    """Whether this is a whole number, or what a tracer has in its place."""
    return isinstance(size, (int, torch.SymInt)) or (isinstance(size, Tensor) and size.dim() == 0)
