"""Diagonal decays beyond the laws: published selective scans, chunks, gradients, extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices import DiagonalSemiseparable, Semiseparable
from matmix.ops import diagonal_scan as scans
from matmix.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from tests.fixtures import Fixture, load_fixture


def problem(length: int, rates: bool = True, states: int = 3, width: int = 5) -> dict[str, Tensor]:
    """Random factors of a scan: 4 heads in 2 groups."""
    torch.manual_seed(length)
    step = torch.rand(2, 4, length, dtype=torch.float64)
    logs = -3 * torch.rand(*((1, 4, 1, states) if rates else (2, 4, length, states)), dtype=torch.float64)
    return {
        "values": torch.randn(2, 4, length, width, dtype=torch.float64),
        "outputs": torch.randn(2, 2, length, states, dtype=torch.float64),
        "inputs": torch.randn(2, 2, length, states, dtype=torch.float64),
        "log_decay": logs,
        "clock": step,
        "step": step,
        "initial": torch.randn(2, 4, width, states, dtype=torch.float64),
    }


@pytest.fixture(params=["by_tokens", "by_chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to run a scan, of which a CPU takes the first."""
    monkeypatch.setattr(scans, "by_tokens", getattr(scans, request.param))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("chunk", [1, 3, 16, 100, None])
@pytest.mark.parametrize("length", [1, 2, 16, 53])
@pytest.mark.parametrize("left_out", [(), ("clock",), ("step", "initial"), ("clock", "step", "initial")])
@pytest.mark.parametrize("rates", [True, False])
def test_any_chunk_gives_the_recurrence(length: int, chunk: int | None, left_out: tuple, rates: bool) -> None:
    given = {name: t for name, t in problem(length, rates).items() if name not in left_out}
    for mine, expected in zip(diagonal_scan(**given, chunk=chunk), diagonal_scan_reference(**given), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rates", [True, False])
@pytest.mark.parametrize(("states", "width"), [(3, 5), (16, 1), (16, 2)])  # few columns are worked on one by one
def test_gradients_are_those_of_the_recurrence(rates: bool, states: int, width: int) -> None:
    def gradients(scan, **options) -> list[Tensor]:
        given = {name: t.requires_grad_() for name, t in problem(23, rates, states, width).items()}
        mixed, state = scan(**given, **options)
        weights = (torch.randn(t.shape, dtype=t.dtype) for t in (mixed, state))
        loss = sum((t * w).sum() for t, w in zip((mixed, state), weights, strict=True))
        return list(torch.autograd.grad(loss, list(given.values())))

    for fast, slow in zip(gradients(diagonal_scan, chunk=5), gradients(diagonal_scan_reference), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("way")
def test_a_state_handed_over_continues_the_sequence() -> None:
    given = problem(40)
    whole, last = diagonal_scan(**given)
    fixed = ("initial", "log_decay")
    left, state = diagonal_scan(**{n: t if n in fixed else t[:, :, :17] for n, t in given.items()})
    rest = {n: t if n in fixed else t[:, :, 17:] for n, t in given.items()}
    right, end = diagonal_scan(**(rest | {"initial": state}))
    torch.testing.assert_close(torch.cat((left, right), 2), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(end, last, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("way")
def test_decays_of_zero_and_one_side_by_side() -> None:
    given = problem(300, rates=False)
    given.pop("clock")
    levels = torch.tensor([-math.inf, -100.0, -1e-3, 0.0], dtype=torch.float64)
    given["log_decay"] = levels[torch.randint(0, 4, given["log_decay"].shape)]
    expected, _ = diagonal_scan_reference(**given)
    rounded = {name: t.float().requires_grad_() for name, t in given.items()}
    mixed, _ = diagonal_scan(**rounded)
    assert float((mixed.detach() - expected).abs().max()) <= 2e-6 * float(expected.abs().max())
    for gradient in torch.autograd.grad(mixed.sum(), list(rounded.values())):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.usefixtures("way")
def test_4096_tokens_in_float32() -> None:
    torch.manual_seed(0)
    exact = DiagonalSemiseparable.example((4096,), heads=1, batch=1)
    values = torch.randn(1, 1, 4096, 2, dtype=torch.float64)
    single = torch.utils._pytree.tree_map(lambda t: t.float(), exact)
    expected = exact.matmul(values)
    assert float((single.matmul(values.float()) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.usefixtures("way")
def test_no_product_depends_on_the_chunk() -> None:
    matrix = DiagonalSemiseparable.example((21,), heads=4)
    full = replace(matrix, log_decay=matrix.log_decay * matrix.clock.unsqueeze(-1), clock=None)
    values = torch.randn(2, 4, 21, 3, dtype=torch.float64)
    dense = matrix.to_dense()
    torch.testing.assert_close(full.to_dense(), dense)
    for chunk in (1, 3, 8, 100, None):
        for same in (replace(matrix, chunk=chunk), replace(full, chunk=chunk)):
            torch.testing.assert_close(same.matmul(values), dense @ values, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(same.rmatmul(values), dense.mT @ values, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rates", [True, False])
def test_second_derivatives(rates: bool) -> None:
    given = {name: t.clone() for name, t in problem(7, rates).items()}
    names, tensors = zip(*given.items(), strict=True)

    def run(*tensors: Tensor) -> Tensor:
        mixed, last = diagonal_scan(**dict(zip(names, tensors, strict=True)))
        return mixed.square().sum() + last.sin().sum()

    for t in tensors:
        t.requires_grad_()
    tangents = [torch.randn_like(t) for t in tensors]
    first = torch.autograd.grad(run(*tensors), tensors, create_graph=True)
    second = torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, tangents, strict=True)), tensors)
    shift = 1e-6
    ahead, behind = ([t.detach() + s * shift * d for t, d in zip(tensors, tangents, strict=True)] for s in (1, -1))
    there, before = (torch.autograd.grad(run(*(t.requires_grad_() for t in at)), at) for at in (ahead, behind))
    for exact, one, other in zip(second, there, before, strict=True):
        torch.testing.assert_close(exact, (one - other) / (2 * shift), rtol=1e-4, atol=1e-5)


def test_vmap_and_functional_gradients() -> None:
    given = problem(9)
    several = torch.randn(3, *given["values"].shape, dtype=torch.float64)
    clocks = torch.rand(3, *given["clock"].shape, dtype=torch.float64)

    def run(values: Tensor, clock: Tensor) -> Tensor:
        return diagonal_scan(**(given | {"values": values, "clock": clock}))[0]

    one_by_one = torch.stack([run(v, c) for v, c in zip(several, clocks, strict=True)])
    torch.testing.assert_close(torch.vmap(run)(several, clocks), one_by_one)
    torch.testing.assert_close(torch.vmap(run, (0, None))(several, clocks[0])[1], run(several[1], clocks[0]))

    def loss(values: Tensor, clock: Tensor) -> Tensor:
        return run(values, clock).square().sum()

    found = torch.vmap(torch.func.grad(loss, (0, 1)))(several, clocks)
    for index in range(3):
        v, c = several[index].clone().requires_grad_(), clocks[index].clone().requires_grad_()
        expected = torch.autograd.grad(loss(v, c), (v, c))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[index], theirs)


def test_the_backward_keeps_no_state_a_token() -> None:
    matrix = DiagonalSemiseparable.example((512,), heads=8, batch=2, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in matrix.tensors()]
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t
    ):
        mixed = matrix.matmul(torch.randn(2, 8, 512, 8))
    assert sum(kept.values()) < 2 * 8 * 512 * 8 * matrix.order
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(mixed.sum(), leaves))


def test_equal_rates_are_one_decay_a_head() -> None:
    scalar = Semiseparable.example((19,), heads=2)
    logs = scalar.log_decay.unsqueeze(-1).expand(-1, -1, -1, scalar.order)
    diagonal = DiagonalSemiseparable(scalar.outputs, scalar.inputs, logs, None, scalar.step)
    torch.testing.assert_close(diagonal.to_dense(), scalar.to_dense())


def channels(case: Fixture) -> tuple[Tensor, ...]:
    """The factors of a published selective scan, whose channels are heads of width 1."""
    bias = case.input("delta_bias").unsqueeze(-1) if "delta_bias" in case.data["inputs"] else 0
    step = F.softplus(case.input("delta") + bias)
    inputs, outputs = case.input("B"), case.input("C")
    length = step.shape[2]
    if inputs.dim() == 2:  # (D, N), the same at every token
        inputs, outputs = (t[None, :, None, :].expand(1, -1, length, -1) for t in (inputs, outputs))
    else:
        inputs, outputs = (t.mT.unsqueeze(1) for t in (inputs, outputs))
    return outputs, inputs, case.input("A")[None, :, None, :], step, step


def test_published_selective_scan() -> None:
    case = load_fixture("sequence/selective_scan_full")
    factors, u = channels(case), case.input("u").unsqueeze(-1)
    for scan in (diagonal_scan, diagonal_scan_reference):
        mixed, last = scan(u, *factors)
        case.check((mixed + case.input("D")[:, None, None] * u).squeeze(-1) * F.silu(case.input("z")))
        case.check(last.squeeze(2), "last_state")


def test_published_scan_of_image_models() -> None:
    case = load_fixture("vision/s6_selective_scan")
    u, state = case.input("u"), case.state()
    step = F.softplus(case.input("delta") + state["delta_bias"].unsqueeze(-1))
    write, read = (case.input(name).mT.unsqueeze(1) for name in ("B", "C"))
    matrix = DiagonalSemiseparable(read, write, -state["A_log"].exp()[None, :, None, :], step, step)
    mixed = matrix.matmul(u.unsqueeze(-1)).squeeze(-1) + state["D"].unsqueeze(-1) * u
    case.check(mixed * F.silu(case.input("z")))


def test_published_scan_of_a_constant_system() -> None:
    case = load_fixture("sequence/selective_scan_lti")
    matrix, u = DiagonalSemiseparable(*channels(case)), case.input("u").unsqueeze(-1)
    case.check(matrix.matmul(u).squeeze(-1))
    case.check((matrix.to_dense() @ u).squeeze(-1))


def test_published_matrix() -> None:
    case = load_fixture("sequence/selective_scan_matrix_L6")
    matrix = DiagonalSemiseparable(*channels(case), chunk=2)
    case.check(matrix.to_dense()[0])
    case.check(matrix.matmul(torch.eye(6, dtype=torch.float64).expand(1, 3, 6, 6))[0])
