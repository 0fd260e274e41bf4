"""The kernels of the delta rule's solve: on a GPU where there is one, and by Triton's interpreter everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from matmix.matrices import UnitLowerInverse
from matmix.ops.delta_rule import MOST
from tests.ops.interpreter import interpreted


@dataclass(frozen=True)
class Case:
    """Sizes and forms; ``shared``: which of left, right and values all samples share; ``alike``: keys point one way."""

    batch: int = 2
    heads: int = 2
    length: int = 65
    states: int = 16
    width: int = 16
    shared: str = ""
    flip: bool = False
    strength: float = 2.0
    alike: float = 0.0
    dtype: torch.dtype = torch.float32

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left, right, values: views of tokens, as mixers have them."""
        generator = torch.Generator().manual_seed(0)

        def draw(name: str, width: int) -> Tensor:
            batch = 1 if name in self.shared else self.batch
            return torch.randn(batch, self.length, self.heads, width, generator=generator).transpose(1, 2)

        key = draw("r", self.states)
        key = torch.nn.functional.normalize(key + self.alike * key[:, :, :1], dim=-1)
        strength = self.strength * torch.sigmoid(2 * draw("l", 1))
        left = key[: 1 if "l" in self.shared else None] * strength
        return left.to(self.dtype), key.to(self.dtype), draw("v", self.width).to(self.dtype)


CASES = [
    Case(length=33, states=8, width=5),
    Case(length=150, states=20, width=40, alike=1.0),
    Case(batch=1, heads=1, length=70, states=80, width=70),
    Case(length=1, states=1, width=1),
    Case(length=130, flip=True),
    Case(shared="lr"),
    Case(shared="v", flip=True),
    Case(batch=1, length=150, states=4, alike=100.0),
    Case(batch=1, length=40, states=200, width=3),
    Case(dtype=torch.float16),
]


def exact(left: Tensor, right: Tensor, values: Tensor, flip: bool) -> Tensor:
    below = left @ right.mT
    one = torch.eye(values.shape[2], dtype=values.dtype, device=values.device)
    return torch.linalg.solve_triangular((below.triu(1) if flip else below.tril(-1)) + one, values, upper=flip)


def compare(case: Case, what: str, got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape, f"{what} of {case}"
    error, size = float((got.detach() - wanted.detach()).abs().max()), float(wanted.detach().abs().max())
    # Keys alike with strengths to 2: the solve multiplies the rounding of its factors, in any algorithm.
    limit = 5e-3 if got.dtype == torch.float16 else 2e-4 if case.alike > 10 else 2e-5
    assert error <= limit * size + 1e-30, f"{what} of {case}: off by {error:.2g} of {size:.2g}"


def check(case: Case, device: str) -> None:
    """The solve and all gradients against dense algebra in float64."""
    from matmix.ops.unit_lower_triton import solve

    ours = [t.to(device).requires_grad_() for t in case.tensors()]
    wide = [t.detach().double().requires_grad_() for t in ours]
    mine, theirs = solve(*ours, flip=case.flip), exact(*wide, case.flip)
    assert mine.dtype == torch.float32
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(device)
    compare(case, "u", mine, theirs)
    got, wanted = torch.autograd.grad(mine, ours, weights), torch.autograd.grad(theirs, wide, weights.double())
    for name, one, other in zip(("left", "right", "values"), got, wanted, strict=True):
        compare(case, f"gradient of {name}", one, other)
    if device == "cuda":
        again = torch.autograd.grad(solve(*ours, flip=case.flip), ours, weights)
        assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True)), f"{case} twice differs"


def check_twice(case: Case, device: str) -> None:
    """Derivatives of derivatives; and the gradient of the values alone."""
    from matmix.ops.unit_lower_triton import solve

    ours = [t.to(device).requires_grad_() for t in case.tensors()]
    wide = [t.detach().double().requires_grad_() for t in ours]
    results = []
    for tensors, solved in ((ours, solve(*ours, flip=case.flip)), (wide, exact(*wide, case.flip))):
        slopes = torch.autograd.grad(solved.square().sum(), tensors, create_graph=True)
        results.append((slopes, torch.autograd.grad(sum(t.square().sum() for t in slopes), tensors)))
    for what, mine, theirs in zip(("first", "second"), *results, strict=True):
        for name, one, other in zip(("left", "right", "values"), mine, theirs, strict=True):
            compare(case, f"{what} derivative to {name}", one, other)
    left, right, values = (t.detach() for t in ours)
    values.requires_grad_()
    (one,) = torch.autograd.grad(solve(left, right, values, flip=case.flip).square().sum(), values)
    compare(case, "gradient of values alone", one, results[1][0][2])


TWICE = Case(length=35, strength=1.0)


@pytest.mark.slow
def test_interpreted() -> None:
    assert interpreted("tests.ops.test_unit_lower_triton").count("holds") == len(CASES) + 1


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LARGE = [
    Case(length=1000, states=64, width=64),
    Case(length=1000, states=64, width=64, flip=True, alike=1.0),
    Case(length=300, states=128, width=128),
    Case(length=200, states=MOST, width=100),
]


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
    def test_equals_dense_algebra(self, case: Case) -> None:
        check(case, "cuda")

    def test_derivatives_of_derivatives(self) -> None:
        check_twice(TWICE, "cuda")

    @pytest.mark.parametrize("transposed", [False, True])
    def test_the_matrix_runs_them(self, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        from matmix.ops import unit_lower_triton

        ran = []
        real = unit_lower_triton.solve
        monkeypatch.setattr(unit_lower_triton, "solve", lambda *args, **kw: ran.append(1) or real(*args, **kw))
        case = Case(length=100, states=32, width=32, flip=transposed, dtype=torch.bfloat16)
        left, right, values = (t.cuda() for t in case.tensors())
        matrix = UnitLowerInverse(left, right)
        got = matrix.rmatmul(values) if transposed else matrix.matmul(values)
        assert ran and got.dtype == torch.bfloat16
        factors = (right, left) if transposed else (left, right)
        wanted = exact(*(t.double() for t in (*factors, values)), transposed)
        assert float((got - wanted).norm() / wanted.norm()) < 0.01


if __name__ == "__main__":
    for each in CASES:
        check(each, "cpu")
        print(each, "holds", flush=True)
    check_twice(TWICE, "cpu")
    print(TWICE, "twice holds", flush=True)
