"""The kernels of the scan with a decay for every state: on a GPU, and by Triton's interpreter everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from matmix.matrices import GatedSemiseparable
from matmix.ops.channel_scan import by_tables, channel_scan
from tests.ops.interpreter import interpreted


@dataclass(frozen=True)
class Case:
    """Sizes and forms; ``shared``: which of the factors all samples share."""

    batch: int = 2
    heads: int = 1
    length: int = 65
    states: int = 16
    width: int = 16
    shared: str = ""
    decay: float = 1.0
    dtype: torch.dtype = torch.float32
    last: bool = True  # whether something is wanted of the last state

    def tensors(self) -> tuple[Tensor, ...]:
        """Values, outputs, inputs, log decay: views of tokens, as mixers have them."""
        generator = torch.Generator().manual_seed(0)

        def draw(name: str, size: int) -> Tensor:
            batch = 1 if name in self.shared else self.batch
            return torch.randn(batch, self.length, self.heads, size, generator=generator).transpose(1, 2)

        values = draw("v", self.width)
        outputs, inputs = (draw(name, self.states) / self.states**0.5 for name in ("c", "b"))
        log_decay = -self.decay * draw("a", self.states).abs()
        if self.decay > 50:
            log_decay[:, :, ::3, ::2] = -torch.inf
        return (*(t.to(self.dtype) for t in (values, outputs, inputs)), log_decay)


CASES = [
    Case(heads=2, length=33, states=8, width=5),
    Case(batch=1, length=90, states=20, width=70),
    Case(batch=1, length=130, states=40, width=20, decay=0.05),
    Case(heads=3, length=1, states=4, width=1),
    Case(batch=1, length=600, states=3, width=2, last=False),  # more chunks than are carried at a time
    Case(shared="cba"),
    Case(shared="v", last=False),
    Case(batch=1, decay=100.0),
    Case(batch=1, decay=0.0),
    Case(batch=1, dtype=torch.float16),  # the interpreter has no products of bfloat16
]


def recurrence(values: Tensor, outputs: Tensor, inputs: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    state, mixed = values.new_zeros(()), []
    for i in range(values.shape[2]):
        new = values[:, :, i, :, None] * inputs[:, :, i, None, :]
        state = log_decay[:, :, i, None].exp() * state + new
        mixed.append((state * outputs[:, :, i, None, :]).sum(-1))
    return torch.stack(mixed, 2), state


def check(case: Case, device: str) -> None:
    """Outputs, the last state and all gradients, against the recurrence in float64."""
    from matmix.ops.channel_scan_triton import scan

    ours = [t.to(device).requires_grad_() for t in case.tensors()]
    wide = [t.detach().double().requires_grad_() for t in ours]
    mixed, last = scan(*ours)
    exact, end = recurrence(*wide)
    torch.manual_seed(0)
    weights = torch.randn_like(exact), torch.randn_like(end) if case.last else None

    def gradients(mixed: Tensor, last: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        total = (mixed * weights[0]).sum()
        return torch.autograd.grad(total if weights[1] is None else total + (last * weights[1]).sum(), tensors)

    got = (mixed, last, *gradients(mixed, last, ours))
    wanted = (exact, end, *gradients(exact, end, wide))
    limit = 5e-3 if case.dtype == torch.float16 else 2e-5
    for name, mine, theirs in zip(("y", "S", "v", "C", "B", "a"), got, wanted, strict=True):
        assert mine.shape == theirs.shape, f"{name} of {case}"
        error, size = float((mine.detach() - theirs.detach()).abs().max()), float(theirs.detach().abs().max())
        assert error <= limit * size + 1e-6, f"{name} of {case}: off by {error:.2g} of {size:.2g}"


def check_chunks(device: str) -> None:
    """The chunk length is no part of the result."""
    from matmix.ops import channel_scan_triton

    tensors = [t.to(device) for t in Case(length=100).tensors()]
    chosen, found = channel_scan_triton.CHUNK, []
    for size in (16, 32, 64):
        channel_scan_triton.CHUNK = size
        found.append(channel_scan_triton.scan(*tensors)[0])
    channel_scan_triton.CHUNK = chosen
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def check_second_derivative(device: str) -> None:
    from matmix.ops.channel_scan_triton import scan

    def second(product, tensors: list[Tensor]) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        mixed, last = product(*tensors)
        first = torch.autograd.grad((mixed**2).sum() + last.sum(), tensors, create_graph=True)
        return torch.autograd.grad(torch.stack([(g**2).sum() for g in first]).sum(), tensors)

    ours = [t.to(device).requires_grad_() for t in Case(batch=1, length=20, states=3, width=2).tensors()]
    for mine, theirs in zip(second(scan, ours), second(by_tables, ours), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_interpreted() -> None:
    assert interpreted("tests.ops.test_channel_scan_triton").count("holds") == len(CASES) + 2


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize(
        "case",
        [
            *CASES,
            Case(heads=4, length=1000, states=32, width=64, decay=0.05),
            Case(length=300, states=128, width=128, decay=0.05),
        ],
    )
    def test_equals_the_recurrence(self, case: Case) -> None:
        check(case, "cuda")

    def test_bfloat16(self) -> None:
        tensors = Case(dtype=torch.bfloat16, length=300, states=32, width=64).tensors()
        mixed, _ = channel_scan(*(t.cuda() for t in tensors))
        exact, _ = by_tables(*(t.double() for t in tensors))
        assert mixed.dtype == torch.float32
        assert float((mixed.cpu() - exact).norm() / exact.norm()) < 0.01

    def test_chunks(self) -> None:
        check_chunks("cuda")

    def test_second_derivative(self) -> None:
        check_second_derivative("cuda")

    @pytest.mark.parametrize("shape", [(2, 3), (1, 1), (1, 3), (2, 1)])
    def test_matrix(self, shape: tuple[int, int]) -> None:
        """Samples and heads that share a matrix."""
        outputs, inputs, raw = torch.randn(3, *shape, 70, 8, device="cuda")
        matrix = GatedSemiseparable(outputs, inputs, -raw.abs())
        values = torch.randn(2, 3, 70, 5, device="cuda")
        torch.testing.assert_close(matrix.matmul(values), matrix.to_dense() @ values, rtol=1e-4, atol=1e-4)

    def test_deterministic(self) -> None:
        tensors = [t.cuda().requires_grad_() for t in Case(length=500, states=32, width=64).tensors()]
        runs = [torch.autograd.grad(channel_scan(*tensors)[0].square().sum(), tensors) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


if __name__ == "__main__":
    for each in CASES:
        check(each, "cpu")
        print(each, "holds", flush=True)
    check_chunks("cpu")
    print("any chunk holds", flush=True)
    check_second_derivative("cpu")
    print("the second derivative holds", flush=True)
