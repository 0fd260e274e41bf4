"""The kernels of gated signals: on a GPU where there is one, and by Triton's interpreter everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.gated import MOST, gated
from matmix.ops.layers import GatedRMSNorm
from tests.ops.interpreter import interpreted

EPS = 0.1  # small against no mean square: a norm over one channel is more than its sign


@dataclass(frozen=True)
class Case:
    """Sizes and forms.

    ``groups``: 0 for no norm. ``heads``: an axis before the channels, where not 0. ``signal``: x in memory: by tokens,
    by channels, or each head by itself.
    """

    batch: int = 2
    length: int = 7
    dim: int = 20
    groups: int = 0
    first: bool = False
    heads: int = 0
    beside: int = 0  # further channels next to those of the gate
    signal: str = "tokens"
    dtype: torch.dtype = torch.float32
    gate_dtype: torch.dtype | None = None
    programs: int = 3

    def tensors(self, device: str = "cpu", dtype: torch.dtype | None = None) -> list[Tensor]:
        """x, gate and, for a norm, its weight: views as mixers have them."""
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        wide = (self.heads or 1) * self.dim
        x, gate, weight = draw(self.batch, self.length, wide), draw(self.batch, self.length, wide + self.beside), None
        gate = gate[..., self.beside :]
        if self.signal == "channels":
            x = x.mT.contiguous().mT
        if self.heads:
            x, gate = (t.unflatten(-1, (self.heads, self.dim)) for t in (x, gate))
        if self.signal == "heads":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        given = [x.to(self.dtype), gate.to(self.gate_dtype or self.dtype)]
        if self.groups:
            weight = 1 + draw(self.dim) / 2
            given.append(weight)
        return [t.to(device, dtype or t.dtype).detach().requires_grad_() for t in given]


CASES = [
    Case(),
    Case(dim=1, batch=1, length=1),
    Case(dim=300, beside=5, signal="channels"),
    Case(dim=130, dtype=torch.float16),
    Case(dtype=torch.bfloat16, gate_dtype=torch.float32),
    *(
        case
        for first in (False, True)
        for case in (
            Case(groups=1, first=first),
            Case(groups=1, first=first, dim=1),
            Case(groups=1, first=first, dim=130, batch=1, length=1),
            Case(groups=3, first=first, dim=390, beside=7, length=13, programs=6),
            Case(groups=3, first=first, dim=3, signal="channels"),
            Case(groups=1, first=first, dim=6, heads=3, beside=2, length=300, programs=6),
            Case(groups=3, first=first, dim=6, heads=2, signal="heads"),
            Case(groups=1, first=first, dim=24, dtype=torch.float16),
        )
    ),
]
# As models have them.
LARGE = [
    Case(batch=4, length=1000, dim=1536, beside=1536),
    Case(batch=4, length=1000, dim=1536, beside=1812, groups=1, first=True, programs=528),
    Case(batch=4, length=1000, dim=1536, beside=1812, groups=1, dtype=torch.bfloat16, programs=528),
    Case(batch=4, length=1000, dim=64, heads=12, beside=2304, groups=1, programs=528),
    Case(length=50, dim=MOST, groups=1),
]


def exact(case: Case, x: Tensor, gate: Tensor, *weight: Tensor) -> Tensor:
    opened = F.silu(gate)
    if not case.groups:
        return x * opened
    grouped = (x * opened if case.first else x).unflatten(-1, (case.groups, -1))
    normed = (grouped / (grouped.square().mean(-1, keepdim=True) + EPS).sqrt()).flatten(-2) * weight[0]
    return normed if case.first else normed * opened


def by_kernels(case: Case, x: Tensor, gate: Tensor, *weight: Tensor) -> Tensor:
    from matmix.ops import gated_triton

    gated_triton.PROGRAMS = case.programs
    if not case.groups:
        return gated_triton.gated(x, gate)
    return gated_triton.gated_rms_norm(x, gate, *weight, case.groups, case.first, EPS)


def compare(case: Case, what: str, got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape, f"{what} of {case}"
    error, size = float((got.detach() - wanted.detach()).abs().max()), float(wanted.detach().abs().max())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[case.dtype]
    limit *= 10 if what.startswith("second") else 1  # small differences of what is large
    assert error <= limit * size + 1e-30, f"{what} of {case}: off by {error:.2g} of {size:.2g}"


def check(case: Case, device: str) -> None:
    """Outputs, gradients and their derivatives against float64."""
    ours = case.tensors(device)
    wide = [t.detach().double().requires_grad_() for t in ours]
    mine, theirs = by_kernels(case, *ours), exact(case, *wide)
    assert mine.dtype == (ours[0].dtype if case.groups else torch.promote_types(ours[0].dtype, ours[1].dtype))
    compare(case, "y", mine, theirs)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(device, mine.dtype)
    names = ("x", "gate", "weight")[: len(ours)]
    got = torch.autograd.grad(mine, ours, weights, retain_graph=True)
    wanted = torch.autograd.grad(theirs, wide, weights.double(), retain_graph=True)
    for name, tensor, one, other in zip(names, ours, got, wanted, strict=True):
        assert one.dtype == tensor.dtype
        compare(case, f"gradient of {name}", one, other)
    again = torch.autograd.grad(by_kernels(case, *ours), ours, weights)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True)), f"{case} twice differs"

    def second(mixed: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(mixed, tensors, weights.to(mixed.dtype), create_graph=True)
        return torch.autograd.grad(sum(t.sin().mean() for t in first), tensors)

    if case.dtype == torch.float32:  # shorter, the sine sees other numbers
        for name, one, other in zip(names, second(mine, ours), second(theirs, wide), strict=True):
            compare(case, f"second derivative to {name}", one, other)


def check_many(device: str) -> None:
    """Many gradients at once, in both ways to ask for them; and a gradient that repeats one number."""
    for case in (Case(), Case(groups=2), Case(groups=1, first=True, heads=2)):
        ours = case.tensors(device)
        wide = [t.detach().double().requires_grad_() for t in ours]
        mine, theirs = by_kernels(case, *ours), exact(case, *wide)
        many = torch.stack((mine.detach(), torch.ones_like(mine)))
        wanted = torch.autograd.grad(theirs, wide, many.double(), is_grads_batched=True, retain_graph=True)
        slopes = torch.vmap(lambda one, mine=mine, ours=ours: torch.autograd.grad(mine, ours, one, retain_graph=True))
        batched = torch.autograd.grad(mine, ours, many, is_grads_batched=True, retain_graph=True)
        for found in (batched, slopes(many)):
            for one, other in zip(found, wanted, strict=True):
                compare(case, "many gradients", one, other)
        for one, other in zip(torch.autograd.grad(mine.sum(), ours), wanted, strict=True):
            compare(case, "gradient of the sum", one, other[1])


@pytest.mark.slow  # 10 s; `test_operators` runs the kernels at small sizes
def test_interpreted() -> None:
    assert interpreted("tests.ops.test_gated_triton").count("holds") == len(CASES) + 1


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
    def test_equals_the_formula(self, case: Case) -> None:
        check(case, "cuda")

    def test_many_gradients(self) -> None:
        check_many("cuda")

    @pytest.mark.parametrize("groups", [0, 1, 3])
    def test_the_modules_run_them(self, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from matmix.ops import gated_triton

        ran = []
        real = gated_triton.call
        monkeypatch.setattr(gated_triton, "call", lambda *args: ran.append(1) or real(*args))
        case = Case(dim=24, groups=groups, beside=24)
        x, gate, *weight = (t.detach() for t in case.tensors("cuda"))
        if groups:
            norm = GatedRMSNorm(24, groups, eps=EPS).cuda().requires_grad_(False)
            norm.weight.copy_(weight[0])
        mix = norm if groups else gated
        compare(case, "y", mix(x, gate), exact(case, *(t.double() for t in (x, gate, *weight))))
        assert len(ran) == 1
        # Float64 and forward mode are PyTorch's, as is what broadcasts.
        if not groups:
            mix(x, gate[:1])
        mix(x.double(), gate.double())
        with torch.autograd.forward_ad.dual_level():
            mix(torch.autograd.forward_ad.make_dual(x, x), gate)
        assert len(ran) == 1


if __name__ == "__main__":
    for each in CASES:
        check(each, "cpu")
        print(each, "holds", flush=True)
    check_many("cpu")
    print("each of many gradients holds", flush=True)
