"""The contract of a structured matrix.

One legend for every class: a matrix ``M`` is ``(B or 1, H, L_out, L_in)``, values ``V`` are ``(B, H, L_in, W)`` and
the product is ``(B, H, L_out, W)``. A leading 1 says that the matrix does not depend on the data; one head (H = 1)
serves values of any number of heads.

A subclass states its tensors as fields with their axes and its options as ``static()`` fields, and writes five
methods::

    class Diagonal(Matrix):
        entries: Tensor = axes("B|1 H L")

        @property
        def shape(self):
            return (*self.entries.shape, self.entries.shape[2])

        def _matmul(self, values):  # the algorithm, at the structure's own cost
            return self.entries.unsqueeze(-1) * values

        def to_dense(self):  # the mathematics, entry by entry, never by way of _matmul
            return torch.diag_embed(self.entries)

        def cost(self, width):
            size = self.entries.numel() * width
            return Cost(size, self.entries.itemsize * (self.entries.numel() + 2 * size))

        @classmethod
        def example(cls, grid, heads=2, batch=2, dtype=torch.float64):
            return cls(torch.randn(batch, heads, math.prod(grid), dtype=dtype))

It becomes a frozen dataclass and a pytree by being defined: nothing to register, and ``example`` alone puts it under
every law of the test suite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.matrices.given import explain, explained, kind
from matmix.matrices.legend import axes, fit
from matmix.ops.cost import Cost
from matmix.ops.product import product
from matmix.ops.sizes import surely
from matmix.ranges import Allowed, refuse, shown

if TYPE_CHECKING:
    from matmix.matrices.algebra import ColumnCat, HeadCat, Kron, Masked, Product, Scale, Sum

Shape = tuple[int, int, int, int]


def static(*, least: float = -math.inf, **options: Any) -> Any:
    """A field that is an option, not data: compared by value, left alone by ``tree_map``, constant to a compiler.

    Args:
        least: of the numbers that it may be (``check``).
        options: of ``dataclasses.field``.
    """
    return field(metadata={"static": True, "least": least}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, axes, field))
@dataclass(frozen=True, eq=False, repr=False)
class Matrix(ABC):
    """A structured matrix ``(B or 1, H, L_out, L_in)``."""

    # What holds for every instance of the class; each word is a law (matmix.testing.PROPERTIES).
    properties: ClassVar[frozenset[str]] = frozenset()
    # Up to this many columns the dense product is the faster one (measured by benchmarks.matrices); 0: never.
    dense_below: ClassVar[int] = 0

    _tensors: ClassVar[tuple[str, ...]] = ()
    _options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(frozen=True, eq=False, repr=False)(cls)
        fields = dataclasses.fields(cls)
        cls._tensors = tuple(f.name for f in fields if not f.metadata.get("static"))
        cls._options = tuple(f.name for f in fields if f.metadata.get("static"))
        for name, value in list(vars(cls).items()):
            if isinstance(value, classmethod) and name != "example":
                setattr(cls, name, classmethod(explained(value.__func__)))
            elif name in ("to_dense", "diagonal", "cost"):
                setattr(cls, name, explained(value))
        pytree.register_pytree_node(
            cls,
            _flatten,
            lambda children, context: _unflatten(cls, children, context),
            flatten_with_keys_fn=_flatten_with_keys,
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            to_dumpable_context=repr,
            from_dumpable_context=_not_loadable,
        )

    # ------------------------------------------------------------------ what a subclass writes

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """``(B or 1, H, L_out, L_in)``."""

    @abstractmethod
    def _matmul(self, values: Tensor) -> Tensor:
        """The fast product; ``values`` are checked and of the right shape."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The matrix written out, ``(B or 1, H, L_out, L_in)``, from its definition and not from the fast product."""

    @abstractmethod
    def cost(self, width: int) -> Cost:
        """Operations and bytes of one product with values of ``width`` columns a head."""

    @classmethod
    @abstractmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        """A small random instance over ``prod(grid)`` tokens, from torch's global generator."""

    def _dense_is_faster(self, width: int) -> bool:
        """Whether to write the matrix out for values of ``width`` columns; asked only if ``dense_below`` is not 0."""
        return self.shape[3] <= self.dense_below

    def _rmatmul(self, values: Tensor) -> Tensor:
        """``M^T v``: the vector-Jacobian product of the fast product, unless a class has a shorter way."""
        (own, _, rows, columns), (batch, heads, _, width) = self.shape, values.shape
        batch = own if batch == 1 else batch  # one sample of values serves the matrices of all samples
        start = values.new_zeros(batch, heads, columns, width)
        return torch.func.vjp(self._matmul, start)[1](values.expand(batch, heads, rows, width))[0]

    def diagonal(self) -> Tensor:
        """``M[i, i]``, shape ``(B or 1, H, min(L_out, L_in))``."""
        return self.to_dense().diagonal(dim1=-2, dim2=-1)

    def _check(self, sizes: dict[str, int]) -> None:  # noqa: B027  # most classes have nothing more to check
        """A ValueError for what ``check`` does not see by itself: options, divisors, values that index something.

        Args:
            sizes: of the letters of the legend.
        """

    # ------------------------------------------------------------------ what a caller uses

    def check(self) -> Self:
        """This matrix, when its tensors are seen to fit each other and its options.

        For matrices that people make: ``M @ v`` asks it; ``matmul``, which forwards call, does not.

        Raises:
            ValueError: naming the field, its axes and what it has instead.
        """
        name, sizes = type(self).__name__, dict[str, int]()
        for stated, allowed in _fields(type(self)):
            value, legend = getattr(self, stated.name), stated.metadata.get("axes")
            if value is None and stated.default is None:
                continue
            if allowed is not None and not allowed.holds(value):
                raise refuse(f"{name}: {stated.name}", allowed, value)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Matrix):
                    part.check()
            if legend is not None:
                fit(name, stated.name, value, legend, stated.metadata["dtype"], sizes)
        return self._agreed(sizes)

    def _agreed(self, sizes: dict[str, int] | None = None) -> Self:
        """This matrix, when its parts agree. Forwards make sums and products of matrices: nothing within the parts is
        looked at, as ``check`` does."""
        self._check(sizes or {})
        _ = self.shape  # or an error that says why they have none
        return self

    def matmul(self, values: Tensor) -> Tensor:
        """``M @ values``: ``(B, H, L_in, W) -> (B, H, L_out, W)``, in the dtype of the values.

        Where one call of PyTorch is the whole product and these checks are felt, a class may answer its plainest case
        (every size equal) here and leave the rest to ``super().matmul``: Dense, LowRank, Softmax.

        Raises:
            ValueError: if the values do not fit the matrix.
        """
        try:
            shape, size = self.shape, values.shape
            # On the hot path, so the good case is a handful of comparisons in place.
            if not (
                len(size) == 4
                and size[2] == shape[3]
                and (size[1] == shape[1] or shape[1] == 1)
                and (size[0] == shape[0] or shape[0] == 1 or size[0] == 1)
                and values.dtype.is_floating_point
            ):
                _check(self, shape, shape[3], values)
            if self.dense_below and surely(self._dense_is_faster(size[3])):
                mixed = product(self.to_dense().to(values.dtype), values)
            else:
                mixed = self._matmul(values)
            return mixed if mixed.dtype == values.dtype else mixed.to(values.dtype)
        except Exception as error:
            explain(self, error, Matrix.matmul, (values,), {})
            raise

    @explained
    def rmatmul(self, values: Tensor) -> Tensor:
        """``M^T @ values``: ``(B, H, L_out, W) -> (B, H, L_in, W)``.

        Raises:
            ValueError: if the values do not fit the transposed matrix.
        """
        shape = self.shape
        _check(self, shape, shape[2], values)
        if self.dense_below and surely(self._dense_is_faster(values.shape[3])):
            mixed = product(self.to_dense().mT.to(values.dtype), values)
        else:
            mixed = self._rmatmul(values)
        return mixed if mixed.dtype == values.dtype else mixed.to(values.dtype)

    @property
    def mT(self) -> Matrix:
        """The transposed matrix of every head."""
        from matmix.matrices.algebra import Transpose

        return Transpose(self)

    def __matmul__(self, other: Any) -> Any:
        """``M @ values`` for people; code in a forward calls ``matmul``, which compilers follow. ``M @ N`` is lazy."""
        if isinstance(other, Matrix):
            from matmix.matrices.algebra import Product

            return Product.of(self, other)
        if isinstance(other, Tensor):
            shape = self.check().shape
            _check(self, shape, shape[3], other)  # `matmul` of some classes leaves a dtype to PyTorch
            return self.matmul(other)
        raise TypeError(f"{self!r} @ values: values must be a tensor or another matrix, got {shown(other)}")

    def __rmatmul__(self, other: Any) -> Any:
        raise TypeError(f"values @ {self!r}: a matrix must stand on the left, as in M.mT @ values, got {shown(other)}")

    def __add__(self, other: Matrix) -> Sum:
        from matmix.matrices.algebra import Sum

        return Sum.of(self, _term(self, other))

    __radd__ = __add__

    def __sub__(self, other: Matrix) -> Sum:
        return self + _term(self, other).scale(-1.0)

    def __rsub__(self, other: Any) -> Any:
        raise TypeError(f"a term of {self!r} must be a matrix, got {shown(other)}")

    __array_ufunc__ = None  # numpy leaves its operators to these

    @explained
    def scale(self, factor: Tensor | float) -> Scale:
        """``factor * M``; a tensor must broadcast to ``(B, H, 1, 1)``."""
        from matmix.matrices.algebra import Scale

        return Scale.of(self, factor)

    @explained
    def masked(self, mask: Tensor) -> Masked:
        """``diag(mask) M diag(mask)`` for a square matrix and a ``(B, L)`` mask, True = a real token."""
        from matmix.matrices.algebra import Masked

        return Masked.of(self, mask)

    @explained
    def permuted(self, index: Tensor) -> Product:
        """``P^T M P``: the same mixing along another scan order. ``index`` (L,) lists the tokens in that order."""
        from matmix.matrices.algebra import Product
        from matmix.matrices.permutation import Permutation

        if index.dim() != 1 or index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
            raise ValueError(f"{type(self).__name__}: index must be integers (L,), got {shown(index)}")
        order = Permutation(index, dtype=self.dtype)
        return Product.of(order.mT, self, order)

    @explained
    def kron(self, other: Matrix) -> Kron:
        """``M (x) N``: M along the rows, N along the columns of a grid."""
        from matmix.matrices.algebra import Kron

        return Kron(self, other)._agreed()

    @explained
    def cat_heads(self, *others: Matrix) -> HeadCat:
        """One matrix whose heads are the heads of all."""
        from matmix.matrices.algebra import HeadCat

        return HeadCat.of(self, *others)

    @explained
    def cat_columns(self, *others: Matrix) -> ColumnCat:
        """``[M, N, ...]``, to be applied to values stacked along the tokens."""
        from matmix.matrices.algebra import ColumnCat

        return ColumnCat((self, *others))._agreed()

    # ------------------------------------------------------------------ tensors, dtype, device, text

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in the matrix, those of its parts too."""
        return (leaf for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor))

    def _parts(self) -> Iterator[Matrix]:
        """The matrices that this one is made of."""
        for name in self._tensors:
            value = getattr(self, name)
            yield from (part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Matrix))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries: that of the first floating tensor, or what the first part states."""
        for tensor in self.tensors():
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
        for part in self._parts():
            return part.dtype
        raise TypeError(f"{type(self).__name__} holds no floating tensor and states no dtype")

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        for tensor in self.tensors():
            return tensor.device
        for part in self._parts():
            return part.device
        raise TypeError(f"{type(self).__name__} holds no tensor and states no device")

    def __repr__(self) -> str:
        try:
            size = "x".join(map(str, self.shape))
        except Exception:  # a debugger and an error still have to name one whose fields do not fit
            return f"{type(self).__name__}(fields that do not fit)"
        traits = ", ".join(sorted(self.properties))
        return f"{type(self).__name__}({size}{'; ' + traits if traits else ''})"


@functools.cache
def _fields(cls: type[Matrix]) -> list[tuple[dataclasses.Field[Any], Allowed | None]]:
    """The fields of a class, and what those may be that have no legend of axes."""
    hints = typing.get_type_hints(cls)
    return [
        (f, None if "axes" in f.metadata else kind(hints[f.name], f.metadata.get("least", -math.inf)))
        for f in dataclasses.fields(cls)
    ]


def _term(matrix: Matrix, other: object) -> Matrix:
    """Another matrix, or a TypeError: numbers are no matrices, as a sum with one of each entry is not structured."""
    if not isinstance(other, Matrix):
        raise TypeError(f"a term beside {matrix!r} must be a matrix, got {shown(other)}")
    return other


def _check(matrix: Matrix, shape: Shape, tokens: int, values: Tensor) -> None:
    """Refuse values that do not fit."""
    size = () if values.is_nested else values.shape
    if (
        len(size) == 4
        and size[2] == tokens
        and (size[1] == shape[1] or shape[1] == 1)
        and (size[0] == shape[0] or shape[0] == 1 or size[0] == 1)
        and values.dtype.is_floating_point
    ):
        return
    batch, heads = shape[0], shape[1]
    raise ValueError(
        f"{matrix!r} needs values of floating point, of shape "
        f"({'B' if batch == 1 else batch}, {'any H' if heads == 1 else heads}, {tokens}, W), got {shown(values)}"
    )


def _flatten(matrix: Matrix) -> tuple[list[Any], tuple[tuple[str, ...], tuple[Any, ...]]]:
    # None is a leaf to torch's pytrees, and vmap refuses it: absent tensors go into the context instead.
    present = tuple(name for name in matrix._tensors if getattr(matrix, name) is not None)
    options = tuple(getattr(matrix, name) for name in matrix._options)
    return [getattr(matrix, name) for name in present], (present, options)


def _flatten_with_keys(matrix: Matrix) -> tuple[list[tuple[Any, Any]], Any]:
    children, context = _flatten(matrix)
    return [(pytree.GetAttrKey(name), child) for name, child in zip(context[0], children, strict=True)], context


def _unflatten(cls: type[Matrix], children: Iterable[Any], context: tuple[tuple[str, ...], tuple[Any, ...]]) -> Any:
    present, options = context
    matrix = object.__new__(cls)
    for name in cls._tensors:
        object.__setattr__(matrix, name, None)
    for name, child in zip(present, children, strict=True):
        object.__setattr__(matrix, name, child)
    for name, option in zip(cls._options, options, strict=True):
        object.__setattr__(matrix, name, option)
    return matrix


def _not_loadable(text: str) -> Any:
    raise NotImplementedError("a matrix is made anew in every forward; a saved program has no matrix in its signature")


def all_classes(base: type[Matrix] = Matrix) -> list[type[Matrix]]:
    """Every concrete matrix class that is defined so far, by module and name; a test's own classes too."""
    found: dict[str, type[Matrix]] = {}
    todo = [base]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if not getattr(cls, "__abstractmethods__", None):
                found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return [found[name] for name in sorted(found)]
