"""The kernels of depthwise convolution: on a GPU where there is one, and by Triton's interpreter everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.nn import functional as F

from matmix.ops import depthwise
from tests.ops.interpreter import interpreted
from tests.ops.test_depthwise import reference

Before = tuple[int, int]
Run = Callable[[Tensor, Tensor, Tensor | None, Before, bool], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes and forms; ``beside``: channels in front, of a memory that the image is a part of.

    ``programs``: how many share the gradient of the kernel, so whether one goes through several tiles.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    before: Before
    batch: int = 2
    channels: int = 3
    bias: bool = True
    beside: int = 0
    programs: int = 396
    dtype: torch.dtype = torch.float32
    silu: bool = False
    small: int = 2**22  # up to how many numbers the taps are read as they are

    def tensors(self, device: str = "cpu", dtype: torch.dtype | None = None) -> list[Tensor]:
        """Image (a view of channels-last memory), kernel and, where there is one, bias."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(self.batch, *self.grid, self.channels + self.beside, generator=generator)
        kernel = torch.randn(self.channels, 1, *self.size, generator=generator)
        given = [tokens, kernel, *([torch.randn(self.channels, generator=generator)] if self.bias else [])]
        given = [t.to(self.dtype).to(device, dtype or self.dtype) for t in given]
        given[0] = given[0].permute(0, 3, 1, 2)[:, self.beside :]
        return [t.detach().requires_grad_() for t in given]


CASES = [
    Case((1, 70), (1, 4), (0, 3)),
    Case((1, 33), (1, 7), (0, 3), batch=1, bias=False, channels=8),
    Case((1, 5), (1, 4), (0, 3), batch=3, channels=130, beside=4),
    Case((1, 40), (1, 11), (0, 2), channels=70, programs=1),
    Case((1, 1), (1, 4), (0, 3), channels=1),
    Case((2, 3), (7, 7), (3, 3), channels=5),
    Case((9, 14), (7, 7), (3, 3), batch=1, channels=5, bias=False),
    Case((9, 6), (3, 3), (1, 1), channels=66, programs=4),
    Case((10, 9), (3, 2), (2, 0), beside=2, batch=1),
    Case((6, 1), (4, 1), (3, 0), channels=6),
    Case((5, 6), (1, 3), (0, 5)),  # the taps end before the position
    Case((5, 6), (2, 3), (-1, 1)),  # and begin behind it
    Case((5, 9), (2, 9), (1, 4), channels=24, dtype=torch.float16),
    Case((1, 40), (1, 4), (0, 3), channels=24, dtype=torch.bfloat16),
    Case((1, 40), (1, 4), (0, 3), channels=24, small=0),
    Case((1, 70), (1, 4), (0, 3), silu=True),
    Case((1, 33), (1, 7), (0, 3), batch=1, bias=False, channels=8, silu=True),
    Case((1, 5), (1, 4), (0, 3), batch=3, channels=130, beside=4, silu=True),
    Case((9, 6), (3, 3), (1, 1), channels=66, programs=4, silu=True),
    Case((5, 6), (2, 3), (-1, 1), silu=True, small=0),
    Case((5, 9), (2, 9), (1, 4), channels=24, dtype=torch.float16, silu=True),
    Case((1, 40), (1, 4), (0, 3), channels=24, dtype=torch.bfloat16, silu=True),
]
# As models have them.
LARGE = [
    Case((1, 4096), (1, 4), (0, 3), batch=4, channels=768),
    Case((1, 1024), (1, 4), (0, 3), batch=4, channels=768, bias=False),
    Case((1, 1000), (1, 4), (0, 3), batch=4, channels=1792, beside=1560),
    Case((1, 4096), (1, 7), (0, 3), batch=4, channels=1024),
    Case((1, 4096), (1, 4), (0, 3), batch=4, channels=768, dtype=torch.bfloat16),
    Case((56, 56), (7, 7), (3, 3), batch=8, channels=128),
    Case((14, 14), (7, 7), (3, 3), batch=8, channels=640),
    Case((14, 14), (7, 7), (3, 3), batch=8, channels=640, dtype=torch.float16),
    Case((28, 28), (3, 3), (1, 1), batch=8, channels=320),
    Case((14, 14), (1, 11), (0, 5), batch=8, channels=96),
    Case((14, 14), (11, 1), (5, 0), batch=8, channels=96),
    Case((1, 4096), (1, 4), (0, 3), batch=4, channels=768, beside=768, silu=True),
    Case((1, 1024), (1, 4), (0, 3), batch=4, channels=768, bias=False, silu=True),
    Case((1, 4096), (1, 7), (0, 3), batch=4, channels=1024, dtype=torch.bfloat16, silu=True),
    Case((56, 56), (3, 3), (1, 1), batch=8, channels=192, silu=True),
]


def by_kernels(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Before, silu: bool = False) -> Tensor:
    from matmix.ops import depthwise_triton

    return depthwise_triton.convolve(image, kernel, bias, before, silu)


def mix(run: Run, inputs: list[Tensor], case: Case) -> Tensor:
    return run(inputs[0], inputs[1], inputs[2] if len(inputs) == 3 else None, case.before, case.silu)


def close(found: Tensor, wanted: Tensor, limit: float, what: str) -> None:
    assert found.shape == wanted.shape, what
    error, size = float((found.detach() - wanted.detach()).abs().max()), float(wanted.detach().abs().max())
    assert error <= limit * size + 1e-30, f"{what}: off by {error:.2g} of {size:.2g}"


def check(case: Case, device: str, run: Run = by_kernels, exactly: Run = reference) -> None:
    """Outputs and gradients against float64."""
    from matmix.ops import depthwise_triton

    ours, wide = case.tensors(device), case.tensors(device, torch.float64)
    with patch.multiple(depthwise_triton, PROGRAMS=case.programs, SMALL=case.small):
        mixed, exact = mix(run, ours, case), mix(exactly, wide, case)
        generator = torch.Generator().manual_seed(1)  # of some draws bfloat16 is off by 1.05 % of the largest entry
        gradient = torch.randn(case.batch, *case.grid, case.channels + case.beside, generator=generator)
        gradient = gradient.to(device, case.dtype)
        gradient = gradient.permute(0, 3, 1, 2)[:, case.beside :]
        found = torch.autograd.grad(mixed, ours, gradient)
    assert mixed.dtype == case.dtype and mixed.permute(0, 2, 3, 1).is_contiguous()
    wanted = torch.autograd.grad(exact, wide, gradient.double())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[case.dtype]
    for name, mine, theirs in zip("yxwb"[: 1 + len(ours)], (mixed, *found), (exact, *wanted), strict=True):
        close(mine, theirs, limit, f"{name} of {case}")


# ------------------------------------------------------------------ by the interpreter


def only_what_is_needed(case: Case = Case((4, 5), (2, 3), (1, 1))) -> None:
    whole = case.tensors()
    wanted = torch.autograd.grad(mix(reference, whole, case).square().sum(), whole)
    for keep in range(3):
        inputs = [t.detach().requires_grad_(i == keep) for i, t in enumerate(whole)]
        mixed = mix(by_kernels, inputs, case)
        (found,) = torch.autograd.grad(mixed.square().sum(), inputs[keep])
        close(found, wanted[keep], 1e-5, f"the gradient of input {keep} alone")
    if not case.silu:
        only_what_is_needed(replace(case, silu=True))


def of_higher_order_and_many_at_once() -> None:
    cases = [Case((4, 5), (2, 3), (1, 0)), Case((1, 6), (1, 4), (0, 3)), Case((3, 2), (3, 5), (0, 5))]
    for case in (*cases, *(replace(case, silu=True) for case in cases[:2])):
        inputs = case.tensors()

        def second(run: Run, case: Case = case, inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            first = torch.autograd.grad(mix(run, inputs, case).sin().sum(), inputs, create_graph=True)
            return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)

        def several(run: Run, case: Case = case, inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            mixed = mix(run, inputs, case)
            many = torch.stack((mixed.detach(), torch.ones_like(mixed)))
            return torch.autograd.grad(mixed, inputs, many, is_grads_batched=True)

        def mapped(run: Run, case: Case = case, inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            mixed = mix(run, inputs, case)
            many = torch.stack((mixed.detach(), torch.ones_like(mixed)))
            return torch.vmap(lambda one: torch.autograd.grad(mixed, inputs, one, retain_graph=True))(many)

        def slope(run: Run, case: Case = case, inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            with fwAD.dual_level():
                duals = [fwAD.make_dual(t, t.detach().cos()) for t in inputs]
                return (fwAD.unpack_dual(mix(run, duals, case)).tangent,)

        for what in (second, several, mapped, slope):
            for mine, theirs in zip(what(by_kernels), what(reference), strict=True):
                close(mine, theirs, 1e-5, f"{what.__name__} of {case}")


def every_run_gives_the_same_bits() -> None:
    case = Case((9, 6), (3, 3), (1, 1), batch=1)
    inputs = case.tensors()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(mix(by_kernels, inputs, case).square().sum(), inputs)

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


def as_autocast_has_it(device: str = "cpu") -> None:
    case = Case((4, 5), (2, 3), (1, 1))
    inputs = case.tensors(device)
    inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        mixed = mix(by_kernels, inputs, case)
    found = torch.autograd.grad(mixed.float().sum(), inputs)
    assert mixed.dtype == torch.bfloat16
    assert [g.dtype for g in found] == [t.dtype for t in inputs]
    close(mixed, mix(reference, [t.float() for t in inputs], case), 2e-2, "under autocast")


def other_layouts_of_a_gradient() -> None:
    case = Case((4, 5), (2, 3), (1, 1), silu=True)
    inputs = case.tensors()
    for gradient in (torch.ones(1).expand(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 4).mT):
        found, wanted = (
            torch.autograd.grad(mix(run, inputs, case), inputs, gradient) for run in (by_kernels, reference)
        )
        for mine, theirs in zip(found, wanted, strict=True):
            close(mine, theirs, 1e-5, f"a gradient of strides {gradient.stride()}")


def what_goes_by_kernels() -> None:
    """Numbers for Triton, in channels-last memory; and what PyTorch would refuse is refused."""
    from matmix.ops import depthwise_triton

    case = Case((4, 5), (2, 3), (1, 1))
    image, kernel, bias = (t.detach() for t in case.tensors())
    half = kernel.half()
    with (
        patch.object(depthwise, "in_triton", lambda *tensors: True),
        patch.object(depthwise, "_LARGE", 0),
        patch.object(depthwise_triton, "convolve", wraps=depthwise_triton.convolve) as seen,
    ):
        found = depthwise.convolve(image, kernel, bias, case.before)
        assert seen.call_count == 1
        first = depthwise.convolve(image.contiguous(), kernel, bias, case.before)
        for wrong in ((image, half, bias), (image, kernel[:2], bias), (image, kernel, bias[:2])):
            with pytest.raises(RuntimeError):
                depthwise.convolve(*wrong, case.before)
        assert seen.call_count == 1
        with patch.object(depthwise, "_LARGE", 2**22):
            depthwise.convolve(image, kernel, bias, case.before)
            assert seen.call_count == 1
            depthwise.convolve(image, kernel, bias, case.before, silu=True)
            assert seen.call_count == 2
    close(found, first, 1e-5, "channels last and first")


FURTHER = (
    what_goes_by_kernels,
    only_what_is_needed,
    of_higher_order_and_many_at_once,
    every_run_gives_the_same_bits,
    as_autocast_has_it,
    other_layouts_of_a_gradient,
)


@pytest.mark.slow
def test_interpreted() -> None:
    assert interpreted("tests.ops.test_depthwise_triton").count("holds") == len(CASES) + len(FURTHER)


# ------------------------------------------------------------------ on a GPU


def by_conv2d(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Before, silu: bool = False) -> Tensor:
    """The definition, once more and faster."""
    (high, wide), (top, left) = kernel.shape[2:], before
    padded = F.pad(image, (left, wide - 1 - left, top, high - 1 - top))
    mixed = F.conv2d(padded, kernel, bias, groups=image.shape[1])
    return F.silu(mixed) if silu else mixed


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@patch.object(depthwise, "_LARGE", 0)
class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", [*CASES, *LARGE])
    def test_equals_the_definition(self, case: Case) -> None:
        from matmix.ops import depthwise_triton

        with patch.object(depthwise_triton, "convolve", wraps=depthwise_triton.convolve) as seen:
            check(case, "cuda", depthwise.convolve, by_conv2d)
        assert seen.called

    def test_autocast_keeps_its_dtype(self) -> None:
        as_autocast_has_it("cuda")

    def test_other_memory_goes_pytorchs_way(self) -> None:
        image, kernel = torch.randn(2, 3, 4, 5, device="cuda"), torch.randn(3, 1, 2, 3, device="cuda")
        with patch("matmix.ops.depthwise_triton.convolve", side_effect=AssertionError):
            mixed = depthwise.convolve(image, kernel, None, (1, 1))
            wide = image.double().to(memory_format=torch.channels_last)
            depthwise.convolve(wide, kernel.double(), None, (1, 1))
        close(mixed, reference(image.double(), kernel.double(), None, (1, 1)), 5e-3, "channels first")


if __name__ == "__main__":
    for each in CASES:
        check(each, "cpu")
        print(each, "holds", flush=True)
    for further in FURTHER:
        further()
        print(further.__name__, "holds", flush=True)
