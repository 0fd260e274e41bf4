"""The chunked scans against the recurrences that define them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from matmix.ops.scan import carry, ssd_scan_reference
from matmix.ops.ssd import ssd_scan
from tests.fixtures import load_fixture


def problem(length: int, heads: int = 4, groups: int = 2, batch: int = 2) -> dict[str, Tensor]:
    """Random factors of a scan; N = 3 and W = 5."""
    torch.manual_seed(length)
    step = torch.rand(batch, heads, length, dtype=torch.float64)
    return {
        "values": torch.randn(batch, heads, length, 5, dtype=torch.float64),
        "outputs": torch.randn(batch, groups, length, 3, dtype=torch.float64),
        "inputs": torch.randn(batch, groups, length, 3, dtype=torch.float64),
        "log_decay": -2 * step,
        "step": step,
        "initial": torch.randn(batch, heads, 5, 3, dtype=torch.float64),
    }


@pytest.mark.parametrize("chunk", [1, 2, 7, 8, 16, 200, None])
@pytest.mark.parametrize("length", [1, 2, 16, 53, 300])
def test_any_chunk_gives_the_recurrence(length: int, chunk: int | None) -> None:
    given = problem(length)
    expected, last = ssd_scan_reference(**given)
    mixed, state = ssd_scan(**given, chunk=chunk)
    torch.testing.assert_close(mixed, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


def test_no_step_and_no_state_are_ones_and_zeros() -> None:
    given = problem(21)
    plain = {name: given[name] for name in ("values", "outputs", "inputs", "log_decay")}
    full = plain | {"step": torch.ones_like(given["step"]), "initial": torch.zeros_like(given["initial"])}
    for one, other in zip(ssd_scan(**plain, chunk=4), ssd_scan_reference(**full), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_the_recurrence() -> None:
    def gradients(scan, **options) -> list[Tensor]:
        given = {name: t.requires_grad_() for name, t in problem(37).items()}
        mixed, state = scan(**given, **options)
        torch.manual_seed(0)
        weights = (torch.randn(t.shape, dtype=t.dtype) for t in (mixed, state))
        loss = sum((t * w).sum() for t, w in zip((mixed, state), weights, strict=True))
        return list(torch.autograd.grad(loss, list(given.values())))

    for fast, slow in zip(gradients(ssd_scan, chunk=5), gradients(ssd_scan_reference), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


def test_a_state_handed_over_continues_the_sequence() -> None:
    given = problem(40)
    whole, last = ssd_scan(**given, chunk=8)
    for cut in (1, 17, 39):
        first = {n: t if n == "initial" else t[:, :, :cut] for n, t in given.items()}
        left, state = ssd_scan(**first, chunk=8)
        rest = {n: state if n == "initial" else t[:, :, cut:] for n, t in given.items()}
        right, end = ssd_scan(**rest, chunk=8)
        torch.testing.assert_close(torch.cat((left, right), 2), whole, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(end, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decays_of_zero_and_one_side_by_side_cost_no_digits(dtype: torch.dtype) -> None:
    """-inf forgets exactly, and a strong decay must not wash out what follows it in the same chunk."""
    given = problem(512)
    given.pop("initial")
    choice = torch.randint(0, 4, given["log_decay"].shape)
    levels = torch.tensor([-math.inf, -100.0, -1e-3, 0.0], dtype=torch.float64)
    given["log_decay"] = levels[choice]
    expected, _ = ssd_scan_reference(**given)
    rounded = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
    mixed, _ = ssd_scan(**rounded, chunk=64)
    limit = {torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    assert float((mixed.detach() - expected).abs().max()) <= limit * float(expected.abs().max())
    for gradient in torch.autograd.grad(mixed.sum(), list(rounded.values())):
        assert bool(torch.isfinite(gradient).all())


def test_an_upper_triangle_that_would_overflow_is_masked_first() -> None:
    given = problem(64)
    given["log_decay"] = torch.full_like(given["log_decay"], -50.0)  # exp(64 * 50) is infinite
    given = {name: t.float().requires_grad_() for name, t in given.items()}
    mixed, state = ssd_scan(**given, chunk=64)
    for gradient in torch.autograd.grad(mixed.sum() + state.sum(), list(given.values())):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("count", [1, 2, 16, 17, 40, 300])
def test_carry_is_its_recurrence_at_every_depth(count: int) -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, count, 4, dtype=torch.float64)
    logs = -torch.rand(2, 3, count, dtype=torch.float64)
    state = torch.randn(2, 3, 4, dtype=torch.float64)
    before, last = carry(states, logs, state)
    for z in range(count):
        torch.testing.assert_close(before[:, :, z], state, rtol=1e-12, atol=1e-12)
        state = logs[:, :, z, None].exp() * state + states[:, :, z]
    torch.testing.assert_close(last, state, rtol=1e-12, atol=1e-12)


def test_published_scan_with_initial_states() -> None:
    case = load_fixture("sequence/ssd_minimal_init_states")
    x, a, b, c = (case.input(name) for name in "XABC")
    start = case.input("initial_states").squeeze(1)
    factors = (x.transpose(1, 2), c.transpose(1, 2), b.transpose(1, 2), a.mT)
    for mixed, state in (
        ssd_scan(*factors, initial=start, chunk=case.config["block_len"]),
        ssd_scan_reference(*factors, initial=start),
    ):
        case.check(mixed.transpose(1, 2))
        case.check(state, "final_state")
