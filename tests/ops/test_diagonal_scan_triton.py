"""The kernels of the diagonal scan against the recurrence: on a GPU, and anywhere in Triton's interpreter.

The interpreter is chosen by an environment variable before Triton is first imported, so it runs in a process of its
own: ``python -m tests.ops.test_diagonal_scan_triton`` prints the errors of all cases.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from matmix.matrices import DiagonalSemiseparable
from matmix.ops import diagonal_scan as scans
from matmix.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from tests.ops.interpreter import interpreted

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def problem(
    length: int,
    *,
    batch: int = 1,
    heads: int = 2,
    groups: int = 1,
    width: int = 1,
    states: int = 3,
    rates: bool = True,
    extreme: bool = False,
    shared: tuple[str, ...] = ("log_decay",),
    without: tuple[str, ...] = (),
    tied: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    """Random factors of a scan in float64, rounded to float32; ``shared`` ones have one sample for all."""
    torch.manual_seed(length)
    logs = -3 * torch.rand(batch, heads, 1 if rates else length, states)
    if extreme:
        least = -1e4 if rates else -math.inf  # a rate of -inf has no derivative by the clock
        logs = torch.tensor([least, -100.0, -1e-3, 0.0])[torch.randint(0, 4, logs.shape)]
    given = {
        "values": torch.randn(batch, heads, length, width),
        "outputs": torch.randn(batch, groups, length, states),
        "inputs": torch.randn(batch, groups, length, states),
        "log_decay": logs,
        "clock": 0.1 + torch.rand(batch, heads, length),
        "step": torch.rand(batch, heads, length),
        "initial": torch.randn(batch, heads, width, states),
    }
    given = {name: t[:1] if name in shared else t for name, t in given.items()}
    if tied:
        given["step"] = given["clock"]
    return {name: t.double() for name, t in given.items() if name not in without}


def errors(scan: Any, given: dict[str, Tensor], device: str, reads: str = "both", **options: Any) -> dict[str, float]:
    """Of the outputs and of every gradient, relative to the largest entry."""

    def run(scan: Any, dtype: torch.dtype, device: str, **options: Any) -> dict[str, Tensor]:
        tied = given.get("step") is given.get("clock")
        leaves = {n: t.to(device, dtype).requires_grad_() for n, t in given.items() if not (tied and n == "step")}
        factors = leaves | ({"step": leaves["clock"]} if tied and "clock" in leaves else {})
        mixed, last = scan(**factors, **options)
        torch.manual_seed(0)
        weights = [torch.randn(t.shape) for t in (mixed, last)]
        parts = [(t * w.to(t)).sum() for t, w in zip((mixed, last), weights, strict=True)]
        loss = {"both": parts[0] + parts[1], "mixed": parts[0], "last": parts[1]}[reads]
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {"mixed": mixed, "last": last} | {f"d_{n}": g for n, g in zip(leaves, grads, strict=True)}

    exact = run(diagonal_scan_reference, torch.float64, "cpu")
    found = run(scan, torch.float32, device, **options)
    return {
        name: float((found[name].detach().cpu() - t).abs().max() / t.detach().abs().max().clamp(min=1e-3))
        for name, t in exact.items()
    }


# Lengths, spans and runs that divide each other and do not; every form of the factors.
CASES: dict[str, dict[str, Any]] = {
    "as in S6": {"length": 33, "tied": True, "without": ("initial",), "run": 4, "spans": (3, 2)},
    "one token": {"length": 1, "without": ("initial",), "reads": "mixed"},
    "no clock, no step": {"length": 5, "without": ("clock", "step", "initial"), "run": 2, "spans": (3, 3)},
    "groups and widths": {
        "length": 5, "batch": 2, "heads": 4, "groups": 2, "width": 2, "run": 2, "spans": (2, 1),
        "shared": ("log_decay", "inputs", "clock"),
    },
    "decays of tokens": {"length": 7, "rates": False, "width": 2, "run": 4, "spans": (1, 2), "shared": ()},
    "no clock of decays": {
        "length": 6, "rates": False, "without": ("clock",), "batch": 2, "shared": ("outputs", "initial"), "run": 2,
    },
    "0 and 1 of tokens": {
        "length": 9, "rates": False, "extreme": True, "without": ("clock",), "run": 2, "spans": (2, 2),
    },
    "0 and 1 of rates": {"length": 9, "extreme": True, "states": 8, "run": 2, "spans": (2, 2)},
    "more lanes": {"length": 4, "states": 18, "heads": 3, "run": 2, "reads": "last"},
    "more warps": {"length": 6, "states": 4, "heads": 20, "run": 2, "spans": (2, 2), "warps": 2},
    "several blocks": {"length": 3, "states": 2, "heads": 40, "run": 1, "spans": (3, 2), "tied": True},
}  # fmt: skip


def selected(
    values: Tensor, outputs: Tensor, inputs: Tensor, A_log: Tensor, raw: Tensor, bias: Tensor, skip: Tensor
) -> tuple[Tensor]:
    """``select_scan`` as it is written."""
    step = torch.nn.functional.softplus(raw + bias[:, None], threshold=40)
    mixed, _ = diagonal_scan_reference(values, outputs, inputs, -A_log.exp()[None, :, None], step, step)
    return (mixed + skip[:, None, None] * values,)


def selection(length: int, heads: int, **sizes: Any) -> dict[str, Tensor]:
    """Random arguments of ``select_scan``; steps from 1e-6 to 10."""
    given = problem(length, heads=heads, without=("log_decay", "clock", "step", "initial"), **sizes)
    raw = torch.linspace(-14, 10, given["values"].shape[0] * heads * length).view(-1, length, heads).mT
    drawn = {"A_log": torch.randn(heads, sizes.get("states", 3))} | {n: torch.randn(heads) for n in ("bias", "skip")}
    return given | {name: t.double() for name, t in (drawn | {"raw": raw}).items()}


def select_errors(given: dict[str, Tensor], device: str, **options: Any) -> dict[str, float]:
    """As ``errors``, of ``select_scan``."""
    from matmix.ops.diagonal_scan_triton import select_scan

    def run(scan: Any, dtype: torch.dtype, device: str) -> list[Tensor]:
        leaves = {name: t.to(device, dtype).requires_grad_() for name, t in given.items()}
        (mixed,) = scan(**leaves)
        torch.manual_seed(0)
        grads = torch.autograd.grad((mixed * torch.randn(mixed.shape).to(mixed)).sum(), list(leaves.values()))
        return [mixed.detach(), *grads]

    exact = run(selected, torch.float64, "cpu")
    found = run(lambda **leaves: (select_scan(**leaves, **options),), torch.float32, device)
    names = ("mixed", *given)
    return {
        n: float((a.cpu() - e).abs().max() / e.abs().max().clamp(min=1e-3))
        for n, a, e in zip(names, found, exact, strict=True)
    }


def planned(case: dict[str, Any]) -> Any:
    from matmix.ops.diagonal_scan_triton import plan

    found = plan(case.get("states", 3), 1, 1, 2, case["length"], None, 1)
    ahead, back = (t._replace(CW=case.get("warps", 1)) for t in (found.ahead, found.back))
    return found._replace(run=case.get("run", 8), spans=case.get("spans", (1, 1)), ahead=ahead, back=back)


def errors_of_all() -> dict[str, dict[str, float]]:
    from matmix.ops.diagonal_scan_triton import scan

    def run(values, outputs, inputs, log_decay, clock=None, step=None, initial=None, planned=None):
        return scan(values, outputs, inputs, log_decay, clock, step, initial, planned=planned)

    found = {}
    for name, case in CASES.items():
        given = problem(**case)
        found[name] = errors(run, given, "cpu", case.get("reads", "both"), planned=planned(case))

    case = {"length": 9, "run": 2, "spans": (2, 3)}
    found["selected"] = select_errors(selection(9, 4, batch=2, groups=2), "cpu", planned=planned(case))

    # Second derivatives and functional transforms, in one problem of which every call is cheap.
    names = ("values", "clock")
    given = {name: t.float() for name, t in problem(3, run=1).items()}
    plan = planned({"length": 3, "run": 1, "spans": (2, 2)})
    several = [torch.stack((given[name], given[name].flip(2))) for name in names]

    def loss(scan: Any, values: Tensor, clock: Tensor, **options: Any) -> Tensor:
        mixed, last = scan(**(given | {"values": values, "clock": clock}), **options)
        return mixed.square().sum() + last.sin().sum()

    def gradients(scan: Any, **options: Any) -> tuple[Tensor, ...]:
        at = [given[name].clone().requires_grad_() for name in names]
        first = torch.autograd.grad(loss(scan, *at, **options), at, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), at)

    def mapped(scan: Any, **options: Any) -> tuple[Tensor, ...]:
        one = torch.func.grad(lambda values, clock: loss(scan, values, clock, **options), (0, 1))
        return torch.vmap(one)(*several)

    def one_by_one(scan: Any) -> list[Tensor]:
        one = torch.func.grad(lambda values, clock: loss(scan, values, clock), (0, 1))
        return [torch.stack(parts) for parts in zip(*(one(*at) for at in zip(*several, strict=True)), strict=True)]

    def largest(mine: Any, theirs: Any) -> dict[str, float]:
        return {n: float((a - b).abs().max() / b.abs().max()) for n, a, b in zip(names, mine, theirs, strict=True)}

    found["twice"] = largest(gradients(run, planned=plan), gradients(diagonal_scan_reference))
    found["mapped"] = largest(mapped(run, planned=plan), one_by_one(diagonal_scan_reference))
    return found


@pytest.mark.slow
def test_interpreted_kernels_give_the_recurrence_and_its_gradients() -> None:
    found = json.loads(interpreted(__name__).splitlines()[-1])
    assert set(CASES) < set(found)
    wrong = {case: parts for case, parts in found.items() if not all(e <= 1e-5 for e in parts.values())}  # nor NaN
    assert not wrong


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 16, 17, 64, 200, 1024])
@pytest.mark.parametrize("length", [1, 31, 196, 4096])
def test_plans_hold_all_states_in_whole_warps(states: int, length: int) -> None:
    from matmix.ops.diagonal_scan_triton import plan

    for channels in (1, 40, 512):
        found = plan(states, 4, 2, channels, length, None, 132)
        assert all(t.NL * t.CL == 32 and states <= t.NR * t.NL for t in (found.ahead, found.back))
        assert all(1 <= count <= max(1, length // 32) for count in found.spans)


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other way may be taken."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("not by the kernels")

    monkeypatch.setattr(scans, "by_chunks", refuse)


class TestOnGPU:
    pytestmark = on_gpu

    @pytest.mark.usefixtures("kernels_only")
    @pytest.mark.parametrize("chunk", [None, 5, 64])
    @pytest.mark.parametrize("name", CASES)
    def test_the_recurrence_and_its_gradients(self, name: str, chunk: int | None) -> None:
        case = CASES[name]
        found = errors(diagonal_scan, problem(**case), "cuda", case.get("reads", "both"), chunk=chunk)
        assert all(error <= 1e-5 for error in found.values()), found

    @pytest.mark.usefixtures("kernels_only")
    @pytest.mark.parametrize("states", [1, 4, 16, 64])
    def test_sizes_of_models(self, states: int) -> None:
        given = problem(300, batch=2, heads=200, groups=2, states=states, tied=True, without=("initial",))
        # As mixers have them: channels side by side.
        given["values"] = given["values"].transpose(1, 2).contiguous().transpose(1, 2)
        found = errors(diagonal_scan, given, "cuda")
        assert all(error <= 1e-5 for error in found.values()), found

    @pytest.mark.usefixtures("kernels_only")
    @pytest.mark.parametrize("length", [1, 300])
    def test_selection(self, length: int) -> None:
        found = select_errors(selection(length, 200, batch=2, states=16), "cuda")
        assert all(error <= 1e-5 for error in found.values()), found

    @pytest.mark.usefixtures("kernels_only")
    def test_runs_give_the_same_bits(self) -> None:
        matrix = DiagonalSemiseparable.example((700,), heads=64, dtype=torch.float32)
        leaves = [t.cuda().requires_grad_() for t in matrix.tensors()]
        values = torch.randn(2, 64, 700, 1, device="cuda")

        def run() -> list[Tensor]:
            mixed, _ = diagonal_scan(values, *leaves)
            return [mixed, *torch.autograd.grad(mixed.square().sum(), leaves)]

        assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))

    def test_float64_goes_by_chunks(self) -> None:
        given = {name: t.cuda() for name, t in problem(40, heads=4).items()}
        for mine, expected in zip(diagonal_scan(**given), diagonal_scan_reference(**given), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


if __name__ == "__main__":
    print(json.dumps(errors_of_all()))
