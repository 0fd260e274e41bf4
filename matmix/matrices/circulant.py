"""Circulant: convolution that wraps round, on a sequence or an image; filters in the frequency domain."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.ops import fft
from matmix.ops.cost import Cost
from matmix.ops.fft import fft_flops, hermitian, in_pieces, to_complex
from matmix.ops.precision import working_dtype
from matmix.ops.sizes import modulo


class Circulant(Matrix):
    """``M[i, j] = kernel[(i - j) mod grid]`` over an n-D grid: ``M = F^-1 diag(spectrum) F``; O(L log L W) per head.

    The spectrum holds the eigenvalues, unscaled (the norms of a forward and an inverse transform cancel). It is kept
    as the half that a real kernel's ``rfftn`` has, in real pairs, since half types have no complex numbers. Build one
    with ``from_kernel`` or ``from_spectrum``; the latter projects onto the spectra of real kernels, so that the
    product is the shown matrix on every device.

    Lengths are transformed as they are: a grid axis with a large prime factor is several times slower.
    """

    spectrum: Tensor = axes("B|1 H *half 2")  # half = (*grid[:-1], grid[-1] // 2 + 1); of a real kernel
    grid: tuple[int, ...] = static(least=1)

    properties: ClassVar = frozenset({"circulant"})
    # No dense_below: from 8 tokens on, writing the matrix out takes longer than both transforms.

    @classmethod
    def from_kernel(cls, kernel: Tensor, grid: tuple[int, ...]) -> Self:
        """From a real kernel ``(B or 1, H, *grid)``; ``kernel[..., 0]`` is lag 0.

        Raises:
            ValueError: if the kernel does not end in the grid.
        """
        grid = tuple(grid)
        if kernel.dim() != 2 + len(grid) or tuple(kernel.shape[2:]) != grid:
            raise ValueError(f"kernel must be (B or 1, H, {', '.join(map(str, grid))}), got {tuple(kernel.shape)}")
        spectrum = fft.rfftn(kernel.to(working_dtype(kernel)), dim=tuple(range(2, 2 + len(grid))))
        return cls(torch.view_as_real(spectrum), grid)

    @classmethod
    def from_spectrum(cls, spectrum: Tensor, grid: tuple[int, ...]) -> Self:
        """From a half spectrum ``(B or 1, H, *grid[:-1], grid[-1] // 2 + 1)``, complex or real pairs ``(..., 2)``.

        It is projected onto the spectra of real kernels, which changes the self-conjugate columns of the last axis
        only (learned filters are free there, and no real matrix has such eigenvalues).

        Raises:
            ValueError: if the spectrum does not end in the half grid.
        """
        grid = tuple(grid)
        half = (*grid[:-1], grid[-1] // 2 + 1)
        pairs = not spectrum.is_complex() and spectrum.shape[-1:] == (2,)
        values = to_complex(spectrum) if pairs else spectrum
        if not values.is_complex() or values.dim() != 2 + len(grid) or tuple(values.shape[2:]) != half:
            raise ValueError(
                f"spectrum must be (B or 1, H, {', '.join(map(str, half))}) complex, or real with a last axis of 2, "
                f"for the grid {grid}; got {tuple(spectrum.shape)} of {spectrum.dtype}"
            )
        return cls(torch.view_as_real(hermitian(values, grid)), grid)

    def _check(self, sizes: dict[str, int]) -> None:
        half = (*self.grid[:-1], self.grid[-1] // 2 + 1)
        if self.spectrum.shape[2:-1] != half:
            raise ValueError(
                f"Circulant: spectrum must be (B or 1, H, {', '.join(map(str, half))}, 2) over the grid {self.grid}, "
                f"got {tuple(self.spectrum.shape)}"
            )

    @property
    def shape(self) -> Shape:
        length = math.prod(self.grid)
        return (self.spectrum.shape[0], self.spectrum.shape[1], length, length)

    def kernel(self) -> Tensor:
        """The real kernel, ``(B or 1, H, *grid)``, in float32 or float64."""
        return fft.irfftn(to_complex(self.spectrum), self.grid, dim=tuple(range(2, 2 + len(self.grid))))

    def _filter(self, values: Tensor, spectrum: Tensor) -> Tensor:
        axes = tuple(range(3, 3 + len(self.grid)))
        dtype = working_dtype(values, self.spectrum)
        if fft.by_products(values, spectrum, self.grid, dtype):
            return fft.filter_by_products(values.to(dtype), spectrum.squeeze(2), self.grid)

        def piece(rows: Tensor, spectrum: Tensor) -> Tensor:
            maps = rows.to(dtype).unflatten(-1, self.grid)
            return fft.irfftn(fft.rfftn(maps, dim=axes) * spectrum, self.grid, dim=axes).flatten(3)

        return in_pieces(piece, values.mT, spectrum, math.prod(self.grid)).mT

    def _matmul(self, values: Tensor) -> Tensor:
        return self._filter(values, to_complex(self.spectrum.unsqueeze(2)))

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._filter(values, to_complex(self.spectrum.unsqueeze(2)).conj())

    @property
    def mT(self) -> Circulant:
        return Circulant(torch.stack([self.spectrum[..., 0], -self.spectrum[..., 1]], -1), self.grid)

    def diagonal(self) -> Tensor:
        first = self.kernel().flatten(2).narrow(-1, 0, 1)
        return first.expand(-1, -1, math.prod(self.grid)).to(self.dtype)

    def to_dense(self) -> Tensor:
        lag = torch.zeros((), dtype=torch.long, device=self.device)
        for axis, size in enumerate(self.grid):
            place = torch.arange(size, device=self.device)
            view = [1] * (2 * len(self.grid))
            view[axis], view[axis + len(self.grid)] = size, size
            lag = lag * size + modulo(place[:, None] - place, size).view(view)
        length = math.prod(self.grid)
        return self.kernel().flatten(2)[..., lag.reshape(length, length)].to(self.dtype)

    def cost(self, width: int) -> Cost:
        batch, heads, length, _ = self.shape
        rows = batch * heads * width
        half = length // self.grid[-1] * (self.grid[-1] // 2 + 1)
        return Cost(
            rows * (2 * fft_flops(self.grid) + 6 * half),
            self.spectrum.itemsize * (self.spectrum.numel() + 2 * rows * length),
        )

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        matrix = cls.from_kernel(torch.randn(batch, heads, *grid, dtype=torch.float64), grid)
        return cls(matrix.spectrum.to(dtype), tuple(grid))
