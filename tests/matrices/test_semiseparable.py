"""Semiseparable and quasiseparable matrices beyond the laws: published numbers, chunks, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices import Diagonal, Quasiseparable, Semiseparable
from matmix.matrices.semiseparable import decays
from tests.fixtures import load_fixture


def with_chunk(matrix: Semiseparable | Quasiseparable, chunk: int | None) -> Semiseparable | Quasiseparable:
    if isinstance(matrix, Semiseparable):
        return replace(matrix, chunk=chunk)
    return replace(matrix, lower=replace(matrix.lower, chunk=chunk))


@pytest.mark.parametrize("cls", [Semiseparable, Quasiseparable])
@pytest.mark.parametrize("length", [1, 2, 17, 64, 130])
def test_no_product_depends_on_the_chunk(cls: type, length: int) -> None:
    torch.manual_seed(0)
    matrix = cls.example((length,), heads=4)
    values = torch.randn(2, 4, length, 3, dtype=torch.float64)
    dense = matrix.to_dense()
    for chunk in (1, 3, 8, 100, None):
        cut = with_chunk(matrix, chunk)
        torch.testing.assert_close(cut.matmul(values), dense @ values, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(cut.rmatmul(values), dense.mT @ values, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cls", [Semiseparable, Quasiseparable])
def test_transposed_product_is_the_vector_jacobian_product(cls: type) -> None:
    matrix = cls.example((37,), heads=2)
    values = torch.randn(2, 2, 37, 3, dtype=torch.float64)
    start = torch.zeros_like(values)
    torch.testing.assert_close(matrix.rmatmul(values), torch.func.vjp(matrix.matmul, start)[1](values)[0])


@pytest.mark.parametrize("cls", [Semiseparable, Quasiseparable])
def test_gradients_of_every_factor_are_those_of_the_dense_product(cls: type) -> None:
    matrix = cls.example((21,), heads=2)
    factors = [t.requires_grad_() for t in matrix.tensors()]
    values = torch.randn(2, 2, 21, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 21, 3, dtype=torch.float64)
    fast = torch.autograd.grad((matrix.matmul(values) * weight).sum(), [*factors, values])
    slow = torch.autograd.grad((matrix.to_dense() @ values * weight).sum(), [*factors, values])
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [Semiseparable, Quasiseparable])
def test_4096_tokens_in_float32(cls: type) -> None:
    torch.manual_seed(0)
    exact = cls.example((4096,), heads=1, batch=1)
    values = torch.randn(1, 1, 4096, 2, dtype=torch.float64)
    single = torch.utils._pytree.tree_map(lambda t: t.float().requires_grad_(), exact)
    mixed = single.matmul(values.float())
    expected = exact.matmul(values)
    assert float((mixed.detach() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    for gradient in torch.autograd.grad(mixed.sum(), list(single.tensors())):
        assert bool(torch.isfinite(gradient).all())


def test_a_decay_of_one_is_linear_attention_and_of_zero_the_diagonal() -> None:
    outputs, inputs = torch.randn(2, 2, 1, 9, 4, dtype=torch.float64).unbind(0)
    values = torch.randn(2, 2, 9, 3, dtype=torch.float64)
    keeps = Semiseparable(outputs, inputs, torch.zeros(1, 2, 9, dtype=torch.float64), chunk=4)
    torch.testing.assert_close(keeps.matmul(values), (outputs @ inputs.mT).tril() @ values)
    forgets = Semiseparable(outputs, inputs, torch.full((1, 2, 9), -torch.inf, dtype=torch.float64), chunk=4)
    torch.testing.assert_close(forgets.matmul(values), Diagonal(forgets.diagonal()).matmul(values))
    torch.testing.assert_close(forgets.to_dense(), torch.diag_embed(forgets.diagonal()))


def test_published_segment_sums() -> None:
    case = load_fixture("sequence/segsum")
    case.check(decays(case.input()))


def test_published_matrix() -> None:
    case = load_fixture("sequence/ssd_matrix_L8")
    a, b, c = (case.input(name) for name in "ABC")
    matrix = Semiseparable(c.transpose(1, 2), b.transpose(1, 2), a.mT, chunk=case.config["block_len"])
    case.check(matrix.to_dense()[0])
    case.check(matrix.matmul(torch.eye(8, dtype=torch.float64).expand(1, 2, 8, 8))[0])


def test_published_product_with_groups_skip_and_gate() -> None:
    case = load_fixture("sequence/ssd_combined_D_z_g2")
    x, z, b, c = (case.input(name).transpose(1, 2) for name in ("x", "z", "B", "C"))
    step = F.softplus(case.input("dt") + case.input("dt_bias"))
    matrix = Semiseparable(c, b, (case.input("A") * step).mT, step.mT, case.config["chunk_size"])
    for mixed in (matrix.matmul(x), matrix.to_dense() @ x):
        y = (mixed + case.input("D").unsqueeze(1) * x) * F.silu(z)
        case.check(y.transpose(1, 2))


@pytest.mark.parametrize("name", ["dd_L8_h2", "dd_L15_h4"])
def test_published_quasiseparable_class(name: str) -> None:
    case = load_fixture(f"sequence/hydra_class_quasiseparable_{name}")
    state = case.state()
    x, both, raw = case.input("x"), case.input("BC"), case.input("dt")
    width = case.config["headdim"]
    heads = x.shape[2] // width
    inputs, outputs = (part.unsqueeze(1) for part in both.chunk(2, -1))
    step = F.softplus(raw).mT
    rate = -state["A_log"].exp().view(-1, 1)

    def way(part: Tensor) -> Semiseparable:
        return Semiseparable(outputs, inputs, rate * part, part, chunk=4)

    forth, back = (way(part) for part in step.chunk(2, 1))
    matrix = Quasiseparable(forth, back, (F.linear(x, state["fc_D.weight"]) + state["D"]).mT)
    values = x.unflatten(-1, (heads, width)).transpose(1, 2)
    for mixed in (matrix.matmul(values), matrix.to_dense() @ values):
        case.check(mixed.transpose(1, 2).flatten(2))
    if "matrix_batch0" in case.data.get("outputs", {}):
        case.check(matrix.to_dense()[0], "matrix_batch0")


def test_neighbours_meet_without_decay() -> None:
    """The shift of the triangles: (i, i - 1) reads C and B of token i - 1."""
    matrix = Quasiseparable.example((9,), heads=2)
    dense = matrix.to_dense()
    lower = (matrix.lower.outputs * matrix.lower.inputs).sum(-1) * matrix.lower.step
    upper = (matrix.upper.outputs * matrix.upper.inputs).sum(-1) * matrix.upper.step
    torch.testing.assert_close(dense.diagonal(-1, 2, 3), lower[..., :-1])
    torch.testing.assert_close(dense.diagonal(1, 2, 3), upper[..., 1:])
