"""Bad calls to every matrix class: fields that do not fit, constructors, products and the algebra."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from matmix.matrices import Matrix
from matmix.testing import MatrixCase
from tests.campaigns.odd import Call, bent, short, thing
from tests.laws import matrix_classes

GRIDS = ((5,), (3, 4), (1,))


def calls(seed: int) -> Iterator[Call]:
    """Endless; every class and every kind of call in turn."""
    draw = random.Random(seed)
    classes = [cls for cls in matrix_classes() if cls.__module__.startswith("matmix.")]
    kinds = (_field, _field, _product, _product, _algebra, _algebra, _made)
    while True:
        for cls in draw.sample(classes, len(classes)):
            yield draw.choice(kinds)(draw, cls)


def _example(draw: random.Random, cls: type[Matrix], dtype: torch.dtype = torch.float64) -> Matrix:
    return MatrixCase(cls, draw.choice(GRIDS), seed=draw.randrange(3)).make(dtype)


def _agrees(matrix: Matrix, values: Tensor) -> Callable[[Any], str]:
    """The product is that of the matrix written out."""

    def right(result: Any) -> str:
        if not isinstance(result, Tensor):
            return ""
        if result.is_meta or values.is_meta or not values.numel():
            return ""
        wanted = matrix.to_dense().double() @ values.double()
        wide = {torch.float64: 1e-6, torch.float32: 1e-3}.get(result.dtype, 0.3)
        wide = max(wide, 1e-3) if matrix.dtype != torch.float64 else wide
        scale = max(1.0, float(wanted.abs().max()))
        far = (wanted - result.double()).abs().nan_to_num() if wanted.shape == result.shape else wanted + torch.inf
        return "a product that is not the matrix's" if (far > wide * scale).any() else ""

    return right


def _field(draw: random.Random, cls: type[Matrix]) -> Call:
    """One field is something else, and the matrix is used."""
    matrix = _example(draw, cls)
    field = draw.choice(dataclasses.fields(cls))
    value = getattr(matrix, field.name)
    wrong = bent(draw, value) if isinstance(value, Tensor) else _option(draw, value)
    made = dataclasses.replace(matrix, **{field.name: wrong})
    use = draw.choice(("check", "@", "to_dense"))

    def run() -> Any:
        if use == "check":
            return made.check()
        if use == "to_dense":
            return made.to_dense()
        batch, heads, _, columns = made.check().shape
        return made @ torch.randn(max(batch, 2), heads, columns, 3, dtype=torch.float64)

    def right(result: Any) -> str:
        if use != "@":
            return ""
        dense = made.to_dense()
        return "" if result.shape[2] == dense.shape[2] or result.is_meta else "a product of another size"

    names = tuple(f.name for f in dataclasses.fields(cls))  # two that contradict each other may be named either way
    return Call(f"{cls.__name__}.{use}({field.name}={short(wrong)})", run, (*names, "values"), (), right)


def _option(draw: random.Random, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 3))
    if isinstance(value, tuple) and value and draw.random() < 0.5:
        return draw.choice((value[:-1], (*value, value[-1]), value[::-1], ()))
    return thing(draw)


def _product(draw: random.Random, cls: type[Matrix]) -> Call:
    """Values that are none."""
    dtype = draw.choice((torch.float64, torch.float32))
    matrix = _example(draw, cls, dtype)
    method = draw.choice(("matmul", "rmatmul", "@"))
    batch, heads, rows, columns = matrix.shape
    values = torch.randn(
        max(batch, 2), max(heads, 2) if heads == 1 else heads, rows if method[0] == "r" else columns, 3
    )
    wrong = bent(draw, values.to(dtype))

    def run() -> Any:
        return matrix @ wrong if method == "@" else getattr(matrix, method)(wrong)

    if not isinstance(wrong, Tensor) or wrong.is_nested or not wrong.is_floating_point():
        right = None
    elif method == "rmatmul" or wrong.layout != torch.strided:
        right = lambda result: ""
    else:
        right = _agrees(matrix, wrong)
    return Call(f"{cls.__name__}.{method}({short(wrong)})", run, ("values",), (wrong,), right)


def _algebra(draw: random.Random, cls: type[Matrix]) -> Call:
    """Sums, products and arrangements with what does not fit."""
    matrix = _example(draw, cls)
    other = draw.choice(matrix_classes())
    method = draw.choice(("scale", "masked", "permuted", "kron", "cat_heads", "cat_columns", "__add__", "__sub__", "@"))
    if method == "scale":
        factor = torch.randn(matrix.shape[0], matrix.shape[1], 1, 1, dtype=torch.float64)
        value = bent(draw, factor) if draw.random() < 0.5 else thing(draw)
    elif method == "masked":
        value = bent(draw, torch.ones(2, matrix.shape[2], dtype=torch.bool))
    elif method == "permuted":
        value = bent(draw, torch.randperm(matrix.shape[2]))
    elif draw.random() < 0.4:
        value = thing(draw)
    else:
        value = _example(draw, other, draw.choice((torch.float64, torch.float32)))

    def run() -> Any:
        made = matrix @ value if method == "@" else getattr(matrix, method)(value)
        if not isinstance(made, Matrix):
            return made
        batch, heads, _, columns = made.check().shape
        made.to_dense()
        return made @ torch.randn(max(batch, 2), heads, columns, 3, dtype=torch.float64)

    names = ("factor", "mask", "index", "other", "others", "values", "term", "terms", "factors", "parts", "blocks",
             "inner", "rows", "columns", "batch", "heads", "entries")  # fmt: skip
    return Call(f"{cls.__name__}.{method}({short(value)})", run, names, (), lambda result: "")


def _made(draw: random.Random, cls: type[Matrix]) -> Call:
    """The other constructors of the class with one argument that is wrong."""
    makers = {
        name: getattr(cls, name)
        for name, value in vars(cls).items()
        if isinstance(value, classmethod) and name != "example" and not name.startswith("_")
    }
    if not makers:
        return _field(draw, cls)
    name = draw.choice(sorted(makers))
    matrix = _example(draw, cls)
    given: dict[str, Any] = {}
    several: list[Any] = []
    for parameter in inspect.signature(makers[name]).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            several = list(getattr(matrix, parameter.name, ()))
            if several:
                several[draw.randrange(len(several))] = thing(draw)
        elif parameter.default is parameter.empty or draw.random() < 0.5:
            value = getattr(matrix, parameter.name, None)
            given[parameter.name] = torch.randn(2, 2, 12, 3) if value is None else value
    if given:
        wrong = draw.choice(sorted(given))
        given[wrong] = bent(draw, given[wrong]) if isinstance(given[wrong], Tensor) else _option(draw, given[wrong])

    def run() -> Any:
        made = makers[name](*given.values(), *several) if several else makers[name](**given)
        if not isinstance(made, Matrix):
            return made
        batch, heads, _, columns = made.check().shape
        return made @ torch.randn(max(batch, 2), heads, columns, 3, dtype=torch.float64)

    text = ", ".join(f"{word}={short(value)}" for word, value in given.items()) or ", ".join(map(short, several))
    names = tuple(inspect.signature(makers[name]).parameters) + tuple(f.name for f in dataclasses.fields(cls))
    return Call(f"{cls.__name__}.{name}({text})", run, (*names, "values", "batch", "heads"), (), lambda result: "")
