"""Circulant matrices: eigenvalues, projection of half spectra, resampling; the Fourier row of blocks."""

from __future__ import annotations

import math

import pytest
import torch

from matmix.matrices import Circulant, Fourier
from matmix.ops.fft import hermitian, resample_spectrum

GRIDS = [(1,), (2,), (6,), (7,), (1, 1), (4, 6), (5, 7), (6, 5), (2, 3, 4)]


def half(grid: tuple[int, ...]) -> tuple[int, ...]:
    return (*grid[:-1], grid[-1] // 2 + 1)


@pytest.mark.parametrize("grid", GRIDS)
def test_free_half_spectrum_is_what_irfftn_makes_of_it(grid: tuple[int, ...]) -> None:
    """On a CPU; the real part of the full inverse transform with the mirrored half says the same everywhere."""
    spectrum = torch.randn(2, 3, *half(grid), dtype=torch.complex128)
    axes = tuple(range(2, 2 + len(grid)))
    torch.testing.assert_close(
        Circulant.from_spectrum(spectrum, grid).kernel(), torch.fft.irfftn(spectrum, grid, dim=axes)
    )
    projected = hermitian(spectrum, grid)
    torch.testing.assert_close(hermitian(projected, grid), projected)
    torch.testing.assert_close(torch.fft.rfftn(torch.fft.irfftn(projected, grid, dim=axes), dim=axes), projected)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_spectrum_holds_the_eigenvalues(grid: tuple[int, ...]) -> None:
    kernel = torch.randn(1, 1, *grid, dtype=torch.float64)
    matrix = Circulant.from_kernel(kernel, grid)
    torch.testing.assert_close(matrix.kernel(), kernel)
    place = [torch.arange(n, dtype=torch.float64) for n in grid]
    for frequency in ((0,) * len(grid), tuple(n // 2 for n in grid)):
        angle = sum(
            2 * math.pi * f * p / n
            for f, n, p in zip(frequency, grid, torch.meshgrid(*place, indexing="ij"), strict=True)
        )
        wave = torch.polar(torch.ones_like(angle), angle).flatten()
        value = torch.view_as_complex(matrix.spectrum)[(0, 0, *frequency)]
        torch.testing.assert_close(matrix.to_dense()[0, 0].to(wave.dtype) @ wave, value * wave)


def test_against_a_convolution_that_wraps_round() -> None:
    kernel, values = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 20, 2).double()
    expected = torch.zeros(2, 3, 4, 5, 2, dtype=torch.float64)
    for row in range(4):
        for column in range(5):
            tap = kernel[:, :, row, column, None, None, None]
            expected += tap * values.unflatten(2, (4, 5)).roll((row, column), (2, 3))
    torch.testing.assert_close(Circulant.from_kernel(kernel, (4, 5)).matmul(values), expected.flatten(2, 3))


@pytest.mark.parametrize(
    ("grid", "size"), [((6,), (9,)), ((7,), (12,)), ((4, 5), (7, 6)), ((5, 6), (5, 9)), ((9, 8), (5, 4))]
)
def test_resampled_spectrum(grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    """A kernel of the lags -1, 0, 1 fits all these grids: it comes out as it went in."""
    near = torch.meshgrid(*(torch.tensor([-1, 0, 1]) for _ in grid), indexing="ij")
    taps = torch.randn(2, *(3 for _ in grid), dtype=torch.float64)
    kernels = []
    for shape in (grid, size):
        kernel = torch.zeros(2, *shape, dtype=torch.float64)
        kernel[(slice(None), *near)] = taps
        kernels.append(torch.fft.rfftn(kernel, dim=tuple(range(1, 1 + len(grid)))))
    torch.testing.assert_close(resample_spectrum(kernels[0], grid, size), kernels[1])


def test_resampling_splits_the_tap_at_half_an_even_axis() -> None:
    kernel = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)  # lags 0, 1, 2 = -2, -1
    larger = torch.fft.irfft(resample_spectrum(torch.fft.rfft(kernel), (4,), (7,)), 7)
    torch.testing.assert_close(larger, torch.tensor([1, 2, 1.5, 0, 0, 1.5, 5], dtype=torch.float64))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"kernel must be \(B or 1, H, 4, 5\), got \(1, 2, 20\)"):
        Circulant.from_kernel(torch.randn(1, 2, 20), (4, 5))
    with pytest.raises(ValueError, match=r"spectrum must be \(B or 1, H, 4, 3\) complex.* for the grid \(4, 5\)"):
        Circulant.from_spectrum(torch.randn(1, 2, 4, 5, 2), (4, 5))


@pytest.mark.parametrize("grid", GRIDS)
def test_fourier_is_the_real_part_of_the_transform(grid: tuple[int, ...]) -> None:
    first, second = torch.randn(2, 2, 1, math.prod(grid), 3, dtype=torch.float64)
    maps = torch.complex(first, -second).unflatten(2, grid)
    expected = torch.fft.fftn(maps, dim=tuple(range(2, 2 + len(grid)))).real.flatten(2, -2)
    matrix = Fourier(grid, 0.5, dtype=torch.float64)
    torch.testing.assert_close(matrix._matmul(torch.cat([first, second], 2)), 0.5 * expected)
