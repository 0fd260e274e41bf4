"""The kernels of the chunked product: on a GPU where there is one, and by Triton's interpreter everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from matmix.ops.scan import by_blocks, ssd_scan_reference
from matmix.ops.ssd import ssd_scan
from tests.ops.interpreter import interpreted


@dataclass(frozen=True)
class Case:
    """Sizes and forms; ``shared``: which of the factors all samples share."""

    batch: int = 2
    heads: int = 4
    groups: int = 2
    length: int = 65
    states: int = 16
    width: int = 16
    step: bool = True
    initial: bool = True
    shared: str = ""
    flip: bool = False
    decay: float = 1.0
    dtype: torch.dtype = torch.float32

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Values, outputs, inputs, log decay, step, initial: views of tokens, as mixers have them."""
        generator = torch.Generator().manual_seed(0)

        def draw(name: str, *shape: int) -> Tensor:
            batch = 1 if name in self.shared else self.batch
            return torch.randn(batch, *shape, generator=generator)

        length, states = self.length, self.states
        values = draw("v", length, self.heads, self.width).transpose(1, 2)
        outputs, inputs = (draw(name, length, self.groups, states).transpose(1, 2) / states**0.5 for name in ("c", "b"))
        log_decay = -self.decay * draw("a", length, self.heads).abs().mT
        if self.decay > 50:
            log_decay[:, :, ::3] = -torch.inf
        step = draw("s", length, self.heads).abs().mT if self.step else None
        initial = draw("i", self.heads, self.width, states) if self.initial else None
        return (*(t.to(self.dtype) for t in (values, outputs, inputs)), log_decay, step, initial)


CASES = [
    Case(length=33, states=8, width=5),
    Case(heads=3, groups=3, length=1, states=4, width=1),
    Case(batch=1, heads=2, groups=1, length=150, states=20, width=70, initial=False),
    Case(batch=1, heads=3, groups=1, length=70, states=80, step=False),
    Case(shared="cbai"),
    Case(batch=1, flip=True),
    Case(batch=1, decay=100.0),
    Case(batch=1, decay=0.0),
    Case(batch=1, dtype=torch.float16),  # the interpreter has no products of bfloat16
]


def check(case: Case, device: str) -> None:
    """Outputs, the last state and all gradients, against the recurrence in float64."""
    from matmix.ops.scan_triton import scan

    ours = [t if t is None else t.to(device).requires_grad_() for t in case.tensors()]
    wide = [t if t is None else t.detach().double().requires_grad_() for t in ours]
    mixed, last = scan(*ours, flip=case.flip)  # type: ignore[arg-type]
    turned = [t if t is None or not case.flip else t.flip(2) for t in wide[:5]]
    exact, end = ssd_scan_reference(*turned, initial=wide[5])  # type: ignore[arg-type]
    exact = exact.flip(2) if case.flip else exact
    torch.manual_seed(0)  # at other weights the gradient of a decay of 100 is off by up to 3e-5 of its size
    weights = torch.randn_like(exact), torch.randn_like(end)
    names = [n for n, t in zip(("v", "C", "B", "a", "s", "S0"), ours, strict=True) if t is not None]

    def gradients(mixed: Tensor, last: Tensor, tensors: list[Tensor | None]) -> tuple[Tensor, ...]:
        total = (mixed * weights[0]).sum() + (last * weights[1]).sum()
        return torch.autograd.grad(total, [t for t in tensors if t is not None])

    got = (mixed, last, *gradients(mixed, last, ours))
    wanted = (exact, end, *gradients(exact, end, wide))
    limit = 5e-3 if case.dtype == torch.float16 else 2e-5
    for name, mine, theirs in zip(("y", "S", *names), got, wanted, strict=True):
        assert mine.shape == theirs.shape, f"{name} of {case}"
        error, size = float((mine.detach() - theirs.detach()).abs().max()), float(theirs.detach().abs().max())
        assert error <= limit * size + 1e-30, f"{name} of {case}: off by {error:.2g} of {size:.2g}"


@pytest.mark.parametrize("count", [2, pytest.param(len(CASES), marks=pytest.mark.slow)])
def test_interpreted(count: int) -> None:
    assert interpreted("tests.ops.test_scan_triton", str(count)).count("holds") == count


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("case", [*CASES, Case(dtype=torch.bfloat16), Case(length=1000, states=128, width=64)])
class TestOnAGpu:
    pytestmark = gpu

    def test_equals_the_recurrence(self, case: Case) -> None:
        if case.dtype == torch.bfloat16:
            mixed, _ = ssd_scan(*(t if t is None else t.cuda() for t in case.tensors()[:5]))  # type: ignore[arg-type]
            exact, _ = by_blocks(*(t if t is None else t.double() for t in case.tensors()[:5]))  # type: ignore[arg-type]
            assert float((mixed.cpu() - exact).norm() / exact.norm()) < 0.01
        else:
            check(case, "cuda")


if __name__ == "__main__":
    for each in CASES[: int(sys.argv[1])]:
        check(each, "cpu")
        print(each, "holds", flush=True)
