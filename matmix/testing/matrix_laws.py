"""The laws of a matrix class, each a function of a :class:`MatrixCase` that raises AssertionError.

The dense matrix is the definition; everything else that a class offers is held against it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.testing.cases import MatrixCase, cast, dense_up_to
from matmix.testing.compare import TOLERANCE, close
from matmix.testing.properties import PROPERTIES

MatrixLaw = Callable[[MatrixCase], None]
MATRIX_LAWS: dict[str, MatrixLaw] = {}
"""name -> law."""


def _law(check: MatrixLaw) -> MatrixLaw:
    MATRIX_LAWS[check.__name__] = check
    return check


def dense_of(matrix: Matrix) -> Tensor:
    """The dense matrix, checked against the stated shape."""
    dense = matrix.to_dense()
    assert tuple(dense.shape) == tuple(matrix.shape), (
        f"{type(matrix).__name__}: to_dense is {tuple(dense.shape)}, shape says {tuple(matrix.shape)}"
    )
    return dense


def expect_product(matrix: Matrix, dense: Tensor, values: Tensor, what: str, *, transposed: bool = False) -> None:
    """``matmul`` (``rmatmul`` if transposed) gives ``dense @ values``, by the fast and the dense path."""
    wide = dense.to(torch.float64)
    wide = wide.mT if transposed else wide
    expected, scale = wide @ values.double(), wide.abs() @ values.double().abs()
    name = "rmatmul" if transposed else "matmul"
    product = matrix.rmatmul if transposed else matrix.matmul
    for columns, path in ((0, "fast"), (1 << 40, "dense")):
        with dense_up_to(columns):
            close(product(values), expected, f"{what}{name} ({path} path)", scale=scale)
    close(product(values), expected, f"{what}{name}", scale=scale)


@_law
def product(case: MatrixCase) -> None:
    """``matmul`` is the product with the dense matrix; the values stay as they are."""
    matrix = case.make()
    values = case.values(matrix)
    before = values.clone()
    expect_product(matrix, dense_of(matrix), values, "")
    assert torch.equal(values, before), "matmul changes the values it is given"
    assert torch.equal(matrix @ values, matrix.matmul(values)), "M @ v is not M.matmul(v)"


@_law
def transposed_product(case: MatrixCase) -> None:
    """``rmatmul`` is the product with the transposed dense matrix."""
    matrix = case.make()
    expect_product(matrix, dense_of(matrix), case.values(matrix, transposed=True), "", transposed=True)


@_law
def transpose(case: MatrixCase) -> None:
    """``mT`` swaps rows and columns, in everything that it offers; twice is the matrix itself."""
    matrix = case.make()
    dense, turned = dense_of(matrix), matrix.mT
    _expect_matrix(turned, dense.mT, case, "mT")
    close(turned.mT.to_dense(), dense, "mT.mT")


@_law
def diagonal(case: MatrixCase) -> None:
    """``diagonal`` is that of the dense matrix."""
    matrix = case.make()
    dense = dense_of(matrix)
    close(matrix.diagonal(), dense.diagonal(dim1=-2, dim2=-1), "diagonal", scale=dense)


@_law
def linear(case: MatrixCase) -> None:
    """``M (u - 2 v) = M u - 2 M v``."""
    matrix = case.make()
    first = case.values(matrix)
    second = case.random(*first.shape, name="others")
    scale = dense_of(matrix).abs() @ (first.abs() + 2 * second.abs())
    parts = matrix.matmul(first) - 2 * matrix.matmul(second)
    close(matrix.matmul(first - 2 * second), parts, "M (u - 2 v)", scale=scale)


def _expect_matrix(matrix: Matrix, dense: Tensor, case: MatrixCase, what: str) -> None:
    """A matrix is this dense one: shape, entries, both products, diagonal."""
    own = dense_of(matrix)
    close(own, dense.expand(matrix.shape), f"{what}: to_dense", scale=max(1.0, float(dense.abs().max())))
    with dense_up_to(0):
        for transposed in (False, True):
            values = case.values(matrix, transposed=transposed)
            wide = dense.mT if transposed else dense
            out = matrix.rmatmul(values) if transposed else matrix.matmul(values)
            name = f"{what}: {'rmatmul' if transposed else 'matmul'}"
            close(out, wide @ values, name, scale=wide.abs() @ values.abs())
    entries = dense.diagonal(dim1=-2, dim2=-1).expand((*matrix.shape[:2], -1))
    close(matrix.diagonal(), entries, f"{what}: diagonal", scale=max(1.0, float(dense.abs().max())))


@_law
def algebra(case: MatrixCase) -> None:
    """Sums, products and arrangements of the matrix are those of the dense matrix, and so are their products."""
    matrix = case.make()
    dense = dense_of(matrix)
    batch, heads, rows, columns = dense.shape

    def other(*size: int) -> Dense:
        return Dense(case.random(*size, name="other"))

    def check(built: Matrix, expected: Tensor, what: str) -> None:
        _expect_matrix(built, expected, case, what)
        if built.shape[2] == built.shape[3] > 1:
            _expect_matrix(built.mT, expected.mT, case, f"({what}).mT")

    peer = other(1, heads, rows, columns)
    check(matrix + peer, dense + peer.entries, "M + N")
    check(peer - matrix, peer.entries - dense, "N - M")
    check(matrix.scale(-1.5), -1.5 * dense, "M.scale(number)")
    factor = case.random(batch, heads, 1, 1, name="factor")
    check(matrix.scale(factor), factor * dense, "M.scale(tensor)")
    left, right = other(1, heads, 3, rows), other(1, 1, columns, 4)
    check(left @ matrix, left.entries @ dense, "N @ M")
    check(matrix @ right, dense @ right.entries, "M @ N")
    check(matrix.mT @ matrix, dense.mT @ dense, "M.mT @ M")
    small = other(1, heads, 2, 3)
    check(matrix.kron(small), _kron(dense, small.entries), "M.kron(N)")
    check(small.kron(matrix), _kron(small.entries, dense), "N.kron(M)")
    stacked = torch.cat([dense, peer.entries.expand_as(dense)], 1)
    check(matrix.cat_heads(peer), stacked, "M.cat_heads(N)")
    wider = other(1, heads, rows, columns + 2)
    streams = torch.cat([dense, wider.entries.expand(batch, -1, -1, -1)], 3)
    check(matrix.cat_columns(wider), streams, "M.cat_columns(N)")
    if rows == columns:
        mask = case.random(batch, rows, name="mask") > -0.5
        kept = mask[:, None, :, None] & mask[:, None, None, :]
        check(matrix.masked(mask), dense.masked_fill(~kept, 0), "M.masked(mask)")
        order = case.random(rows, name="order").argsort()
        scattered = torch.zeros_like(dense)
        scattered[..., order[:, None], order] = dense
        check(matrix.permuted(order), scattered, "M.permuted(order)")


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product of every pair of heads, by its definition."""
    first, second = (
        t.expand(*torch.broadcast_shapes(first.shape[:2], second.shape[:2]), -1, -1) for t in (first, second)
    )
    return torch.einsum("bhij,bhkl->bhikjl", first, second).flatten(4).flatten(2, 3)


@_law
def tree(case: MatrixCase) -> None:
    """A matrix is a pytree: rebuilt from its leaves, cast leaf by leaf, and mapped over a batch of matrices."""
    matrix = case.make()
    dense, values = dense_of(matrix), case.values(matrix)
    leaves, shape = pytree.tree_flatten(matrix)
    assert all(isinstance(leaf, Tensor) for leaf in leaves), f"leaves are not all tensors: {leaves}"
    again = pytree.tree_unflatten(leaves, shape)
    assert type(again) is type(matrix), f"rebuilt as {type(again).__name__}"
    close(again.to_dense(), dense, "rebuilt from its leaves")
    narrow = cast(matrix, torch.float32)
    close(narrow.to_dense().float(), dense, "tree_map to float32")
    scale = dense.abs() @ values.abs()
    close(narrow.matmul(values.float()), dense @ values, "product after tree_map to float32", scale=scale)
    if not leaves:
        return
    second = pytree.tree_map(lambda leaf: 0.75 * leaf if leaf.is_floating_point() else leaf, matrix)
    pair = pytree.tree_map(lambda *pair: torch.stack(pair), matrix, second)
    both = torch.stack([values, 2 * values])
    with dense_up_to(0):
        mapped = torch.vmap(lambda m, v: m.matmul(v))(pair, both)
        expected = torch.stack([matrix.matmul(values), second.matmul(2 * values)])
    close(mapped, expected, "vmap over two matrices")


@_law
def gradient(case: MatrixCase) -> None:
    """Gradients through the products are those through the dense matrix, for every tensor and the values."""
    matrix = case.make()
    for transposed in (False, True):
        values = case.values(matrix, transposed=transposed).detach().requires_grad_()
        leaves, shape = pytree.tree_flatten(matrix)
        inputs = [
            leaf.detach().clone().requires_grad_() if leaf.is_floating_point() or leaf.is_complex() else leaf
            for leaf in leaves
        ]
        live = [t for t in (*inputs, values) if t.requires_grad]
        rebuilt = pytree.tree_unflatten(inputs, shape)
        dense = rebuilt.to_dense()
        with dense_up_to(0):
            fast = rebuilt.rmatmul(values) if transposed else rebuilt.matmul(values)
        slow = (dense.mT if transposed else dense) @ values
        weight = case.random(*slow.shape, name="weight")
        got, wanted = (_gradients(out, weight, live) for out in (fast, slow))
        scale = max(float(g.abs().max()) for g in wanted if g.numel())
        for index, (mine, reference) in enumerate(zip(got, wanted, strict=True)):
            what = "the values" if index == len(live) - 1 else f"tensor {index}"
            name = "rmatmul" if transposed else "matmul"
            close(mine, reference, f"gradient of {name} for {what}", scale=scale)


def _gradients(out: Tensor, weight: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    if not out.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return list(torch.autograd.grad(out, inputs, weight, allow_unused=True, materialize_grads=True, retain_graph=True))


@_law
def cost(case: MatrixCase) -> None:
    """``cost`` counts whole operations and bytes: at least the result, more for more columns, no more than twice for
    twice as many. Only a product that returns the very values it is given is free."""
    matrix = case.make()
    once, twice = matrix.cost(case.width), matrix.cost(2 * case.width)
    for value in (once.flops, once.bytes):
        assert isinstance(value, int) and value >= 0, f"cost must be whole and not negative, got {once}"
    values = case.values(matrix)
    if matrix.matmul(values) is values:
        return
    batch, heads, rows, _ = matrix.shape
    written = batch * heads * rows * case.width * matrix.dtype.itemsize
    assert once.bytes >= written, f"{once} for a product that writes {written} bytes"
    assert twice.bytes > once.bytes and twice.flops >= once.flops, f"twice the columns go from {once} to {twice}"
    assert twice.flops <= 2 * once.flops and twice.bytes <= 2 * once.bytes, (
        f"twice the columns cost more than twice: from {once} to {twice}"
    )


@_law
def dtypes(case: MatrixCase) -> None:
    """The result has the dtype of the matrix and values, and the precision that the dtype allows."""
    for dtype in TOLERANCE:
        matrix = case.make(dtype)
        assert matrix.dtype == dtype, f"example(dtype={dtype}) has dtype {matrix.dtype}"
        name = str(dtype).removeprefix("torch.")
        dense = matrix.to_dense()
        assert dense.dtype == dtype, f"{name}: to_dense is {dense.dtype}"
        assert matrix.diagonal().dtype == dtype, f"{name}: diagonal is {matrix.diagonal().dtype}"
        exact = cast(matrix, torch.float64).to_dense().double()
        close(dense, exact, f"{name}: to_dense")
        for transposed in (False, True):
            values = case.values(matrix, transposed=transposed)
            with dense_up_to(0):
                out = matrix.rmatmul(values) if transposed else matrix.matmul(values)
            assert out.dtype == dtype, f"{name}: the product is {out.dtype}"
            wide = exact.mT if transposed else exact
            scale = wide.abs() @ values.double().abs()
            close(out, wide @ values.double(), f"{name}: product", scale=scale)


@_law
def batches(case: MatrixCase) -> None:
    """A batch of 0 works; a matrix serves values of one batch entry, and one that is the same for all samples (or
    heads) serves any number of them."""
    matrix = case.make(batch=0)
    for transposed in (False, True):
        batch, heads, rows, columns = matrix.shape
        assert batch in (0, 1), f"example(batch=0) has shape {matrix.shape}"
        values = case.random(0, max(heads, 1), rows if transposed else columns, case.width)
        with dense_up_to(0):
            out = matrix.rmatmul(values) if transposed else matrix.matmul(values)
        expected = (0, max(heads, 1), columns if transposed else rows, case.width)
        assert tuple(out.shape) == expected, f"empty batch: the product is {tuple(out.shape)}, expected {expected}"
    matrix = case.make()
    dense = dense_of(matrix)
    for transposed in (False, True):
        batch, heads, rows, columns = matrix.shape
        more = 3 if batch == 1 else 1
        values = case.random(more, 3 if heads == 1 else heads, rows if transposed else columns, case.width)
        expect_product(matrix, dense, values, f"values of batch {more}: ", transposed=transposed)


@_law
def refuses(case: MatrixCase) -> None:
    """Values that do not fit are a ValueError that names the class and their shape."""
    matrix = case.make()
    name = type(matrix).__name__
    for transposed in (False, True):
        values = case.values(matrix, transposed=transposed)
        product = matrix.rmatmul if transposed else matrix.matmul
        wrong = [values[0], values[:, :, :-1], torch.cat([values, values[:, :, :1]], 2)]
        if matrix.shape[1] > 1:
            wrong.append(torch.cat([values, values[:, :1]], 1))
        if matrix.shape[0] > 1:
            wrong.append(torch.cat([values, values[:1]], 0))
        for bad in wrong:
            shape = tuple(bad.shape)
            try:
                product(bad)
            except ValueError as error:
                assert name in str(error), f"the error for values {shape} does not name {name}: {error}"
                assert str(shape) in str(error), f"the error for values {shape} does not say so: {error}"
            else:
                raise AssertionError(f"{matrix!r} takes values of shape {shape}")


@_law
def properties(case: MatrixCase) -> None:
    """Every word in ``properties`` is known, and holds."""
    matrix = case.make()
    dense = dense_of(matrix)
    for word in sorted(matrix.properties):
        assert word in PROPERTIES, f"unknown property {word!r}; known: {', '.join(sorted(PROPERTIES))}"
        try:
            PROPERTIES[word](matrix, dense)
        except AssertionError as error:
            raise AssertionError(f"property {word!r}: {error}") from None


@_law
def compiles(case: MatrixCase) -> None:
    """Making the matrix from tensors and applying it is one graph (``torch.compile(fullgraph=True)``)."""
    matrix = case.make(torch.float32)
    values = case.values(matrix)
    fields = {f.name: getattr(matrix, f.name) for f in dataclasses.fields(matrix)}
    tensors = {name: field for name, field in fields.items() if isinstance(field, Tensor)}
    cls = type(matrix)

    def apply(tensors: dict[str, Tensor], values: Tensor) -> Tensor:
        return cls(**{**fields, **tensors}).matmul(values)

    torch._dynamo.reset()
    try:
        for columns in (0, 1 << 40):
            with dense_up_to(columns):
                out = torch.compile(apply, fullgraph=True, backend="aot_eager")(tensors, values)
                close(out, apply(tensors, values), "compiled product")
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True): {str(error).strip()[:600]}") from error
    finally:
        torch._dynamo.reset()
