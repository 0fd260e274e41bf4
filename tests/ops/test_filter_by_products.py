"""Filters on small grids: products with the matrices of the transforms are the transforms."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from matmix import create_mixer
from matmix.matrices import Circulant
from matmix.ops import fft

GRIDS = [(1,), (2,), (7,), (8,), (3, 4), (4, 3), (5, 1), (1, 6), (7, 7), (8, 8), (2, 3, 4)]


def transformed(values, spectrum, grid):
    """The same by the transforms of a spectrum that was projected before."""
    axes = tuple(range(3, 3 + len(grid)))
    maps = fft.rfftn(values.mT.unflatten(-1, grid), dim=axes) * fft.hermitian(spectrum, grid).unsqueeze(2)
    return fft.irfftn(maps, grid, dim=axes).flatten(3).mT


def drawn(grid, dtype=torch.float64, batches=(2, 1), width=1):
    """Values, and half spectra that are those of no real kernel."""
    torch.manual_seed(0)
    values = torch.randn(batches[0], 3, math.prod(grid), width, dtype=dtype)
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    return values, torch.randn(batches[1], 3, *grid[:-1], grid[-1] // 2 + 1, dtype=kind)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_products_are_the_transforms(grid):
    for batches in ((2, 1), (1, 2), (2, 2), (0, 1)):
        for width in (1, 3):
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
                values, spectrum = drawn(grid, dtype, batches, width)
                found = fft.filter_by_products(values, spectrum, grid)
                assert found.dtype == dtype
                torch.testing.assert_close(found, transformed(values, spectrum, grid), rtol=0, atol=tolerance)


@pytest.mark.parametrize("grid", [(3, 4), (7, 7)], ids=str)
def test_float32_is_as_near_to_float64_as_the_transforms_are(grid):
    values, spectrum = drawn(grid)
    exact = transformed(values, spectrum, grid)
    less = values.float(), spectrum.to(torch.complex64), grid
    errors = [float((way(*less) - exact).abs().max()) for way in (fft.filter_by_products, transformed)]
    assert errors[0] < 4 * errors[1]


def test_gradients_of_both_orders():
    values, spectrum = (t.requires_grad_() for t in drawn((3, 4)))
    products = functools.partial(fft.filter_by_products, grid=(3, 4))
    assert torch.autograd.gradcheck(products, (values, spectrum))
    assert torch.autograd.gradgradcheck(products, (values, spectrum))
    gain = torch.randn(2, 3, 12, 1, dtype=torch.float64)
    ways = [torch.autograd.grad((way(values, spectrum, (3, 4)) * gain).sum(), (values, spectrum))
            for way in (fft.filter_by_products, transformed)]  # fmt: skip
    for found, expected in zip(*ways, strict=True):
        torch.testing.assert_close(found, expected)


def taken(run) -> bool:
    """Whether a run goes by products."""
    asked = []
    real = fft.filter_by_products

    def listen(*arguments):
        asked.append(True)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fft, "filter_by_products", listen)
        run()
    return bool(asked)


def test_where_products_are_taken():
    values, spectrum = drawn((7, 7), torch.float32)
    matrix = Circulant(torch.view_as_real(spectrum), (7, 7))
    assert taken(lambda: matrix.matmul(values)) and taken(lambda: matrix.rmatmul(values))
    assert taken(lambda: matrix.matmul(values.bfloat16()))
    assert not taken(lambda: matrix.matmul(values.double()))
    few, spectrum = drawn((4, 4), torch.float64)
    assert taken(lambda: Circulant(torch.view_as_real(spectrum), (4, 4)).matmul(few))
    for grid in ((49,), (1, 49), (9, 4), (3, 5, 5)):
        values, spectrum = drawn(grid, torch.float32)
        large = Circulant(torch.view_as_real(spectrum), grid)
        assert not taken(lambda large=large, values=values: large.matmul(values)), grid


def test_who_looks_on_sees_the_transforms():
    values, spectrum = drawn((7, 7), torch.float32)
    matrix = Circulant(torch.view_as_real(spectrum), (7, 7))
    expected = matrix.matmul(values)

    def counted():
        with FlopCounterMode(display=False):
            matrix.matmul(values)

    def cast():
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(matrix.matmul(values), expected, rtol=0, atol=1e-4)

    compiled = torch.compile(matrix.matmul, backend="eager", fullgraph=True)
    many = torch.vmap(matrix.matmul)
    for run in (counted, cast, lambda: compiled(values), lambda: many(values.expand(2, *values.shape))):
        assert not taken(run)
    torch.testing.assert_close(many(values.expand(2, *values.shape))[1], expected, rtol=0, atol=1e-4)


def test_matrices_made_without_gradients_serve_those_with():
    fft._transforms.cache_clear()
    mixer = create_mixer("global_filter", 4, (5, 5))
    x = torch.randn(1, 25, 4)
    with torch.inference_mode():
        mixer(x)
    mixer(x).sum().backward()
    assert mixer.complex_weights.grad is not None and torch.isfinite(mixer.complex_weights.grad).all()
