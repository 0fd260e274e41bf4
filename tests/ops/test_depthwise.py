"""Depthwise convolution with a gradient of its own, against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from matmix.ops import depthwise
from matmix.ops.depthwise import convolve

Before = tuple[int, int]


def reference(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Before, silu: bool = False) -> Tensor:
    """The definition, with the zeros written out."""
    (high, wide), (rows, columns) = kernel.shape[2:], image.shape[2:]
    top, left = before
    padded = F.pad(image, (left, wide - 1 - left, top, high - 1 - top))
    total = torch.zeros_like(image) if bias is None else bias.view(-1, 1, 1).expand_as(image)
    for i in range(high):
        for j in range(wide):
            total = total + kernel[:, 0, i, j].view(-1, 1, 1) * padded[:, :, i : i + rows, j : j + columns]
    return total * total.sigmoid() if silu else total


@contextmanager
def strips(cache: int = depthwise._CACHE) -> Iterator[list[torch.Size]]:
    """Everything goes by strips, in any dtype and however small; the shapes of the kernels that did."""
    seen = []
    found = depthwise._by_strips

    def noted(image: Tensor, gradient: Tensor, shape: torch.Size, padding: list[int]) -> Tensor:
        seen.append(shape)
        return found(image, gradient, shape, padding)

    with (
        patch.object(depthwise, "_CACHE", cache),
        patch.object(depthwise, "WORTH", 0),
        patch.object(depthwise, "plain_numbers", lambda *tensors: True),
        patch.object(depthwise, "_by_strips", noted),
    ):
        yield seen


def draw(
    batch: int, channels: int, grid: tuple[int, int], size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Image (a view of channels-last memory), kernel and bias."""
    image = torch.randn(batch, *grid, channels, dtype=dtype).requires_grad_().permute(0, 3, 1, 2)
    kernel = torch.randn(channels, 1, *size, dtype=dtype, requires_grad=True)
    return image, kernel, torch.randn(channels, dtype=dtype, requires_grad=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_gradients_are_those_of_the_definition(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.sampled_from([1, 1, 2, 5, 9]), st.integers(4, 12)), label="grid")
    size = tuple(data.draw(st.integers(low, n), label="kernel") for low, n in zip((1, 4), grid, strict=True))
    before = tuple(data.draw(st.integers(0, k - 1), label="before") for k in size)
    batch, channels = data.draw(st.integers(0, 3), label="batch"), data.draw(st.integers(1, 5), label="channels")
    cache = data.draw(st.sampled_from([1, 64, 2**19]), label="cache")
    inputs = draw(batch, channels, grid, size)
    gradient = torch.randn(batch, channels, *grid, dtype=torch.float64)
    expected = reference(*inputs, before)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    with strips(cache) as seen:
        mixed = convolve(*inputs, before)
        found = torch.autograd.grad(mixed, inputs, gradient)
    assert seen
    torch.testing.assert_close(mixed, expected)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("grid", [(14, 15), (1, 300)])
def test_plain_numbers_go_by_strips(grid: tuple[int, int]) -> None:
    """In float32 as it is used: nothing patched but a note taken."""
    size, before = (min(grid[0], 7), 7), (min(grid[0], 7) // 2, 6)
    inputs = draw(6, 96, grid, size, torch.float32)
    with patch.object(depthwise, "_by_strips", wraps=depthwise._by_strips) as seen:
        mixed = convolve(*inputs, before)
        found = torch.autograd.grad(mixed, inputs, torch.cos(mixed.detach()))
    assert seen.called
    exact = tuple(t.detach().double().requires_grad_() for t in inputs)
    expected = reference(*exact, before)
    torch.testing.assert_close(mixed, expected.float(), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(found, torch.autograd.grad(expected, exact, torch.cos(expected.detach())), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_needed(needed: tuple[bool, ...]) -> None:
    inputs = tuple(t.detach().requires_grad_(on) for t, on in zip(draw(2, 3, (5, 6), (3, 4)), needed, strict=True))
    (leaf,) = (t for t in inputs if t.requires_grad)
    with strips() as seen, patch.object(torch.ops.aten, "convolution_backward", wraps=_backward) as called:
        mixed = convolve(*inputs, (1, 2))
        (found,) = torch.autograd.grad(mixed, leaf, torch.ones_like(mixed))
    assert bool(seen) == needed[1]
    assert needed[0] or not any(call.args[-1][0] for call in called.call_args_list)
    (wanted,) = torch.autograd.grad(reference(*inputs, (1, 2)).sum(), leaf)
    torch.testing.assert_close(found, wanted)


_backward = torch.ops.aten.convolution_backward


@pytest.mark.parametrize("grid", [(5, 6), (1, 7)])
def test_derivatives_of_higher_order_and_many_at_once(grid: tuple[int, int]) -> None:
    size = (min(grid[0], 2), 4)
    inputs = tuple(t.detach().requires_grad_() for t in draw(2, 2, grid, size))
    before = (size[0] - 1, 1)
    with strips() as seen:
        assert torch.autograd.gradcheck(lambda *t: convolve(*t, before), inputs, check_batched_grad=True)
        assert seen
        assert torch.autograd.gradgradcheck(lambda *t: convolve(*t, before), inputs)


@pytest.mark.parametrize("moved", [(0,), (1,), (2,), (0, 1, 2)])
def test_forward_mode_beside_a_graph(moved: tuple[int, ...]) -> None:
    inputs = tuple(t.detach().requires_grad_() for t in draw(2, 3, (5, 6), (3, 4)))
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def slope(run: Callable[..., Tensor]) -> Tensor:
        with fwAD.dual_level():
            duals = [
                fwAD.make_dual(t, d) if i in moved else t for i, (t, d) in enumerate(zip(inputs, tangents, strict=True))
            ]
            return fwAD.unpack_dual(run(*duals, (1, 2))).tangent

    with strips():
        found = slope(convolve)
    torch.testing.assert_close(found, slope(reference))


def test_transforms() -> None:
    """What is mapped or transformed goes PyTorch's way, and through."""
    image, kernel, bias = (t.detach() for t in draw(6, 96, (14, 15), (7, 7), torch.float32))

    def loss(kernel: Tensor, image: Tensor) -> Tensor:
        return convolve(image, kernel, bias, (3, 3)).square().mean()

    leaf = kernel.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, image), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(kernel, image), wanted)
    single = torch.func.vmap(torch.func.grad(loss), (None, 0))(kernel, image.unsqueeze(1))
    torch.testing.assert_close(single.mean(0), wanted)
    _, slope = torch.func.jvp(lambda k: loss(k, image), (kernel,), (kernel,))
    torch.testing.assert_close(slope, (wanted * kernel).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("grid", "before"), [((14, 15), (3, 3)), ((1, 300), (0, 6))])
def test_compiles(grid: tuple[int, int], before: Before) -> None:
    image, kernel, bias = draw(6, 96, grid, (2 * before[0] + 1, 7), torch.float32)

    def run(image: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return convolve(image, kernel, bias, before)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    mixed, expected = compiled(image, kernel, bias), run(image, kernel, bias)
    torch.testing.assert_close(mixed, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().mean(), (image, kernel, bias)) for y in (mixed, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_autocast_keeps_its_dtype() -> None:
    inputs = draw(6, 96, (14, 15), (7, 7), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = convolve(*inputs, (3, 3))
    assert mixed.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(mixed.float().sum(), inputs[1])
    (wanted,) = torch.autograd.grad(convolve(*inputs, (3, 3)).sum(), inputs[1])
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2
