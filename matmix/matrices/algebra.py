"""The algebra: sums, products and arrangements of matrices are matrices, built lazily and applied by parts."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.dense import Dense
from matmix.matrices.legend import axes
from matmix.ops.cost import Cost
from matmix.ops.sizes import joint


def _joint(sizes: list[int], what: str, name: str) -> int:
    """The common size of parts whose size may also be 1."""
    common = joint(sizes)
    if any(size not in (1, common) for size in sizes):
        raise ValueError(f"{name}: {what} of the parts must be equal or 1, got {sizes}")
    return common


def _several(owner: str, name: str, parts: tuple[Matrix, ...]) -> None:
    if not parts:
        raise ValueError(f"{owner}: {name} must be at least one matrix, got none")


def _one_batch(mixed: list[Tensor]) -> list[Tensor]:
    """Products of parts, some of which brought a batch that the values lack, at one batch size."""
    batch = _joint([part.shape[0] for part in mixed], "batch", "products")
    return [part if part.shape[0] == batch else part.expand(batch, -1, -1, -1) for part in mixed]


def cost_within(part: Matrix, whole: Matrix, width: int) -> Cost:
    """What a part costs in a whole: one that is shared by the batch and the heads is applied to each of them."""
    (batch, heads, *_), (samples, own, *_) = whole.shape, part.shape
    return part.cost(width * (heads if own == 1 else 1)) * (batch if samples == 1 else 1)


def _random(rows: int, columns: int, heads: int, batch: int, dtype: torch.dtype) -> Dense:
    return Dense(torch.randn(batch, heads, rows, columns, dtype=dtype))


class Sum(Matrix):
    """``M = A + B + ...``; the cost of its terms."""

    terms: tuple[Matrix, ...]

    @classmethod
    def of(cls, *terms: Matrix) -> Self:
        return cls(tuple(p for term in terms for p in (term.terms if isinstance(term, Sum) else (term,))))._agreed()

    def _check(self, sizes: dict[str, int]) -> None:
        _several("Sum", "terms", self.terms)
        if any(term.shape[2:] != self.terms[0].shape[2:] for term in self.terms):
            raise ValueError(f"Sum: terms must be of one size, got {', '.join(map(repr, self.terms))}")

    @property
    def shape(self) -> Shape:
        shapes = [term.shape for term in self.terms]
        batch, heads = (_joint([s[i] for s in shapes], w, "Sum") for i, w in enumerate(("batch", "heads")))
        return (batch, heads, *shapes[0][2:])

    def _matmul(self, values: Tensor) -> Tensor:
        mixed = self.terms[0].matmul(values)
        for term in self.terms[1:]:
            mixed = mixed + term.matmul(values)
        return mixed

    def _rmatmul(self, values: Tensor) -> Tensor:
        mixed = self.terms[0].rmatmul(values)
        for term in self.terms[1:]:
            mixed = mixed + term.rmatmul(values)
        return mixed

    @property
    def mT(self) -> Sum:
        return Sum(tuple(term.mT for term in self.terms))

    def diagonal(self) -> Tensor:
        entries = self.terms[0].diagonal()
        for term in self.terms[1:]:
            entries = entries + term.diagonal()
        return entries

    def to_dense(self) -> Tensor:
        entries = self.terms[0].to_dense()
        for term in self.terms[1:]:
            entries = entries + term.to_dense()
        return entries

    def cost(self, width: int) -> Cost:
        total = sum((cost_within(term, self, width) for term in self.terms), Cost(0, 0))
        batch, heads, rows, _ = self.shape
        written = batch * heads * rows * width * (len(self.terms) - 1)
        return total + Cost(written, 3 * written * self.dtype.itemsize)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls.of(_random(length, length, heads, batch, dtype), _random(length, length, 1, 1, dtype))


class Scale(Matrix):
    """``factor * M``, one factor for all or one a sample and head."""

    inner: Matrix = axes("B|1 H|1 L_out L_in")
    factor: Tensor = axes("B|1 H|1 1 1")

    @classmethod
    def of(cls, inner: Matrix, factor: Tensor | float) -> Self:
        if not isinstance(factor, Tensor):
            factor = torch.full((1, 1, 1, 1), float(factor), dtype=inner.dtype, device=inner.device)
        shape = (1,) * (4 - factor.dim()) + tuple(factor.shape)
        if len(shape) != 4 or shape[2:] != (1, 1):
            raise ValueError(
                f"factor must broadcast to (B, H, 1, 1), got {tuple(factor.shape)}; a factor a token is a Diagonal"
            )
        _joint([inner.shape[0], shape[0]], "batch", "Scale")
        _joint([inner.shape[1], shape[1]], "heads", "Scale")
        return cls(inner, factor.reshape(shape))

    @property
    def shape(self) -> Shape:
        shape = self.inner.shape
        return (joint([shape[0], self.factor.shape[0]]), joint([shape[1], self.factor.shape[1]]), *shape[2:])

    def _matmul(self, values: Tensor) -> Tensor:
        return self.factor * self.inner.matmul(values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.inner.rmatmul(self.factor * values)

    @property
    def mT(self) -> Scale:
        return Scale(self.inner.mT, self.factor)

    def diagonal(self) -> Tensor:
        return self.factor.squeeze(-1) * self.inner.diagonal()

    def to_dense(self) -> Tensor:
        return self.factor * self.inner.to_dense()

    def cost(self, width: int) -> Cost:
        batch, heads, rows, _ = self.shape
        written = batch * heads * rows * width
        return cost_within(self.inner, self, width) + Cost(written, 2 * written * self.factor.itemsize)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls.of(_random(length, length, heads, 1, dtype), torch.randn(batch, heads, 1, 1, dtype=dtype))


class Product(Matrix):
    """``M = A B ...``, applied from the right: the cost of its factors, never of the product."""

    factors: tuple[Matrix, ...]

    @classmethod
    def of(cls, *factors: Matrix) -> Self:
        flat = (p for factor in factors for p in (factor.factors if isinstance(factor, Product) else (factor,)))
        return cls(tuple(flat))._agreed()

    def _check(self, sizes: dict[str, int]) -> None:
        _several("Product", "factors", self.factors)
        for left, right in pairwise(self.factors):
            if left.shape[3] != right.shape[2]:
                raise ValueError(
                    f"Product: factors must fit each other, but {left!r} has {left.shape[3]} columns, {right!r} has "
                    f"{right.shape[2]} rows"
                )

    @property
    def shape(self) -> Shape:
        shapes = [factor.shape for factor in self.factors]
        batch, heads = (_joint([s[i] for s in shapes], w, "Product") for i, w in enumerate(("batch", "heads")))
        return (batch, heads, shapes[0][2], shapes[-1][3])

    def _matmul(self, values: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            values = factor.matmul(values)
        return values

    def _rmatmul(self, values: Tensor) -> Tensor:
        for factor in self.factors:
            values = factor.rmatmul(values)
        return values

    @property
    def mT(self) -> Product:
        return Product(tuple(factor.mT for factor in reversed(self.factors)))

    def to_dense(self) -> Tensor:
        dense = [factor.to_dense() for factor in self.factors]
        wide = functools.reduce(torch.promote_types, (entries.dtype for entries in dense))  # a sum promotes by itself
        entries = dense[0].to(wide)
        for factor in dense[1:]:
            entries = entries @ factor.to(wide)
        return entries

    def cost(self, width: int) -> Cost:
        return sum((cost_within(factor, self, width) for factor in self.factors), Cost(0, 0))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls.of(_random(length, length + 1, heads, batch, dtype), _random(length + 1, length, heads, 1, dtype))


class Transpose(Matrix):
    """``M^T`` of a class that has no transposed form of its own."""

    inner: Matrix

    @property
    def shape(self) -> Shape:
        batch, heads, rows, columns = self.inner.shape
        return (batch, heads, columns, rows)

    def _matmul(self, values: Tensor) -> Tensor:
        return self.inner.rmatmul(values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self.inner.matmul(values)

    @property
    def mT(self) -> Matrix:
        return self.inner

    def diagonal(self) -> Tensor:
        return self.inner.diagonal()

    def to_dense(self) -> Tensor:
        return self.inner.to_dense().mT

    def cost(self, width: int) -> Cost:
        return self.inner.cost(width)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls(_random(length, length + 2, heads, batch, dtype))


class Kron(Matrix):
    """``rows (x) columns`` over a grid that is flattened row by row: one axis after the other.

    O(R C (R + C) W) for dense factors on an R x C grid instead of O(R^2 C^2 W).
    """

    rows: Matrix
    columns: Matrix

    @property
    def shape(self) -> Shape:
        rows, columns = self.rows.shape, self.columns.shape
        return (
            _joint([rows[0], columns[0]], "batch", "Kron"),
            _joint([rows[1], columns[1]], "heads", "Kron"),
            rows[2] * columns[2],
            rows[3] * columns[3],
        )

    def _matmul(self, values: Tensor) -> Tensor:
        return _kron(self.rows.matmul, self.columns.matmul, values, self.rows.shape[3], self.columns.shape[3])

    def _rmatmul(self, values: Tensor) -> Tensor:
        return _kron(self.rows.rmatmul, self.columns.rmatmul, values, self.rows.shape[2], self.columns.shape[2])

    @property
    def mT(self) -> Kron:
        return Kron(self.rows.mT, self.columns.mT)

    def to_dense(self) -> Tensor:
        rows, columns = self.rows.to_dense(), self.columns.to_dense()
        blocks = rows[:, :, :, None, :, None] * columns[:, :, None, :, None, :]
        return blocks.reshape(*blocks.shape[:2], *self.shape[2:])

    def cost(self, width: int) -> Cost:
        # Rows are mixed for every column of the grid and the other way round.
        along_rows = cost_within(self.rows, self, width * self.columns.shape[3])
        return along_rows + cost_within(self.columns, self, width * self.rows.shape[2])

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        rows, columns = grid[0], math.prod(grid[1:])
        return cls(_random(rows, rows, heads, batch, dtype), _random(columns, columns, heads, 1, dtype))


def _kron(along_rows, along_columns, values: Tensor, rows: int, columns: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Mix columns within each row, then rows within each column; the other axis rides along in the width."""
    batch, heads, _, width = values.shape
    mixed = along_rows(values.reshape(batch, heads, rows, columns * width))
    batch, heads, rows = mixed.shape[:3]  # a factor may bring a batch or heads that the values lack
    grid = mixed.reshape(batch, heads, rows, columns, width).transpose(2, 3)
    mixed = along_columns(grid.reshape(batch, heads, columns, rows * width))
    batch, heads, columns = mixed.shape[:3]
    grid = mixed.reshape(batch, heads, columns, rows, width).transpose(2, 3)
    return grid.reshape(batch, heads, rows * columns, width)


class HeadCat(Matrix):
    """One matrix whose heads are those of its parts in turn.

    ``repeats[i]`` heads in a row share each head of part ``i``: that is how parts of different head widths stand
    side by side (four heads of width 8 that share one matrix are one head of width 32).
    """

    parts: tuple[Matrix, ...]
    repeats: tuple[int, ...] = static(least=1)

    @classmethod
    def of(cls, *parts: Matrix, repeats: tuple[int, ...] | None = None) -> Self:
        return cls(tuple(parts), repeats or (1,) * len(parts))._agreed()

    def _check(self, sizes: dict[str, int]) -> None:
        _several("HeadCat", "parts", self.parts)
        if any(part.shape[2:] != self.parts[0].shape[2:] for part in self.parts):
            raise ValueError(f"HeadCat: parts must be of one size, got {', '.join(map(repr, self.parts))}")
        if len(self.repeats) != len(self.parts):
            raise ValueError(f"HeadCat: repeats must be one for each of {len(self.parts)} parts, got {self.repeats}")

    @property
    def shape(self) -> Shape:
        shapes = [part.shape for part in self.parts]
        heads = sum(s[1] * r for s, r in zip(shapes, self.repeats, strict=True))
        return (_joint([s[0] for s in shapes], "batch", "HeadCat"), heads, *shapes[0][2:])

    def _apply(self, name: str, values: Tensor) -> Tensor:
        counts = [part.shape[1] * repeat for part, repeat in zip(self.parts, self.repeats, strict=True)]
        mixed = []
        for part, repeat, chunk in zip(self.parts, self.repeats, values.split(counts, 1), strict=True):
            if repeat == 1:
                mixed.append(getattr(part, name)(chunk))
                continue
            batch, heads, length, width = chunk.shape
            wide = chunk.reshape(batch, heads // repeat, repeat, length, width).transpose(2, 3)
            out = getattr(part, name)(wide.reshape(batch, heads // repeat, length, repeat * width))
            out = out.unflatten(3, (repeat, width)).transpose(2, 3)
            mixed.append(out.flatten(1, 2))
        return torch.cat(_one_batch(mixed), 1)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._apply("matmul", values)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._apply("rmatmul", values)

    @property
    def mT(self) -> HeadCat:
        return HeadCat(tuple(part.mT for part in self.parts), self.repeats)

    def _stack(self, per_part: list[Tensor]) -> Tensor:
        batch = self.shape[0]
        wide = [t.repeat_interleave(r, 1) for t, r in zip(per_part, self.repeats, strict=True)]
        return torch.cat([t.expand(batch, *t.shape[1:]) for t in wide], 1)

    def diagonal(self) -> Tensor:
        return self._stack([part.diagonal() for part in self.parts])

    def to_dense(self) -> Tensor:
        return self._stack([part.to_dense() for part in self.parts])

    def cost(self, width: int) -> Cost:
        total, batch = Cost(0, 0), self.shape[0]
        for part, repeat in zip(self.parts, self.repeats, strict=True):
            total = total + part.cost(width * repeat) * (batch if part.shape[0] == 1 else 1)
        return total

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        one, many = _random(length, length, 1, batch, dtype), _random(length, length, heads, 1, dtype)
        return cls.of(one, many, repeats=(3, 1))


class ColumnCat(Matrix):
    """``[A, B, ...]`` over values stacked along the tokens: a mixer that reads several value streams."""

    blocks: tuple[Matrix, ...]

    def _check(self, sizes: dict[str, int]) -> None:
        _several("ColumnCat", "blocks", self.blocks)

    @property
    def shape(self) -> Shape:
        shapes = [block.shape for block in self.blocks]
        if any(s[2] != shapes[0][2] for s in shapes):
            raise ValueError(f"ColumnCat: blocks must have as many rows, got {', '.join(map(repr, self.blocks))}")
        batch, heads = (_joint([s[i] for s in shapes], w, "ColumnCat") for i, w in enumerate(("batch", "heads")))
        return (batch, heads, shapes[0][2], sum(s[3] for s in shapes))

    def _matmul(self, values: Tensor) -> Tensor:
        streams = values.split([block.shape[3] for block in self.blocks], 2)
        mixed = self.blocks[0].matmul(streams[0])
        for block, stream in zip(self.blocks[1:], streams[1:], strict=True):
            mixed = mixed + block.matmul(stream)
        return mixed

    def _rmatmul(self, values: Tensor) -> Tensor:
        return torch.cat(_one_batch([block.rmatmul(values) for block in self.blocks]), 2)

    def to_dense(self) -> Tensor:
        batch, heads = self.shape[:2]
        return torch.cat([b.expand(batch, heads, -1, -1) for b in (block.to_dense() for block in self.blocks)], 3)

    def cost(self, width: int) -> Cost:
        return sum((cost_within(block, self, width) for block in self.blocks), Cost(0, 0))

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls((_random(length, length, heads, batch, dtype), _random(length, length + 1, 1, 1, dtype)))


class Masked(Matrix):
    """``diag(rows) M diag(columns)`` with 0/1 masks: what stands at a masked position neither gives nor gets."""

    inner: Matrix = axes("B|1 H L_out L_in")
    rows: Tensor = axes("B|1 L_out", torch.bool)  # True = a real token
    columns: Tensor = axes("B|1 L_in", torch.bool)

    @classmethod
    def of(cls, inner: Matrix, mask: Tensor) -> Self:
        length = inner.shape[2]
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != length or inner.shape[3] != length:
            raise ValueError(
                f"mask must be bool of shape (B, {length}) over a square matrix, got {mask.dtype} "
                f"{tuple(mask.shape)} for {inner!r}"
            )
        return cls(inner, mask, mask)

    @property
    def shape(self) -> Shape:
        shape = self.inner.shape
        return (_joint([shape[0], self.rows.shape[0]], "batch", "Masked"), *shape[1:])

    def _matmul(self, values: Tensor) -> Tensor:
        kept = values.masked_fill(~self.columns[:, None, :, None], 0)
        return self.inner.matmul(kept).masked_fill(~self.rows[:, None, :, None], 0)

    def _rmatmul(self, values: Tensor) -> Tensor:
        kept = values.masked_fill(~self.rows[:, None, :, None], 0)
        return self.inner.rmatmul(kept).masked_fill(~self.columns[:, None, :, None], 0)

    @property
    def mT(self) -> Masked:
        return Masked(self.inner.mT, self.columns, self.rows)

    def to_dense(self) -> Tensor:
        kept = self.rows[:, None, :, None] & self.columns[:, None, None, :]
        return self.inner.to_dense().masked_fill(~kept, 0)

    def cost(self, width: int) -> Cost:
        batch, heads, rows, columns = self.shape
        return cost_within(self.inner, self, width) + Cost(
            0, 2 * batch * heads * (rows + columns) * width * self.dtype.itemsize
        )

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        length = math.prod(grid)
        return cls.of(_random(length, length, heads, 1, dtype), torch.rand(batch, length) < 0.7)
