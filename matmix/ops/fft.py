"""What everything on the FFT shares: lengths, dtypes, convolution, Hermitian spectra.

Half types are transformed in float32 (a CPU has no half FFT, CUDA has it for powers of two only); float64 stays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.activations import plain_tensors
from matmix.ops.pieces import piece_bytes
from matmix.ops.precision import working_dtype
from matmix.ops.sizes import exporting, known, larger, modulo, power_of_two

# A C allocator maps blocks above 32 MiB anew at every call, and the page faults then cost more than the transform
# (256 x 16384 real values, one thread: 97 ms in one piece, 30 ms in pieces of 2 MiB).
_PIECE_BYTES = 2 << 20


SMALL_GRID, SMALL_AXIS = {torch.float32: 64, torch.float64: 16}, 8
"""Tokens of a grid by dtype, and along one of its axes, up to which products are faster than transforms where there are
two axes or more: 1.1 to 3.8 times at 4 x 4 to 8 x 8 in float32, 1.2 to 2.0 times at 4 x 4 in float64, where 7 x 7 has
0.7 to 1.0 times the speed (``benchmarks/results/small_grids.md``)."""


def _also_empty(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A transform that takes tensors without entries, such as an empty batch: MKL (of torch 2.14) and cuFFT refuse
    them. Empty axes are transformed with one entry, which is cut off again."""

    @functools.wraps(transform)
    def run(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.compiler.is_compiling() or x.numel():
            return transform(x, *args, **options)
        pad = [entries for size in reversed(x.shape) for entries in (0, int(size == 0))]
        y = transform(F.pad(x, pad), *args, **options)
        for axis, size in enumerate(x.shape):
            y = y.narrow(axis, 0, 0) if size == 0 else y
        return y

    return run


fftn, hfftn = _also_empty(torch.fft.fftn), _also_empty(torch.fft.hfftn)
rfft, _irfft = _also_empty(torch.fft.rfft), _also_empty(torch.fft.irfft)
rfftn, _irfftn = _also_empty(torch.fft.rfftn), _also_empty(torch.fft.irfftn)


def irfft(half: Tensor, n: int, dim: int = -1, norm: str | None = None) -> Tensor:
    """The real signals of n numbers along an axis, of half spectra of ``n // 2 + 1``."""
    if known(n) or not exporting():
        return _irfft(half, n, dim, norm)
    # Whole spectra, in real pairs: onnxruntime takes a half one for as long as it is where the length is open.
    place = torch.arange(n, device=half.device)
    mirrored = n - place
    pairs = torch.view_as_real(half.movedim(dim, -1)).index_select(-2, torch.minimum(place, mirrored))
    imaginary = torch.where(place < mirrored, pairs[..., 1], -pairs[..., 1])
    return torch.fft.ifft(torch.complex(pairs[..., 0], imaginary), norm=norm).real.movedim(-1, dim)


def irfftn(half: Tensor, s: tuple[int, ...], dim: tuple[int, ...], norm: str | None = None) -> Tensor:
    """The real signals on a grid, which lies along axes, of half spectra; the last axis is halved."""
    if known(*s) or not exporting():
        return _irfftn(half, s, dim, norm)
    if len(s) > 1:
        half = torch.fft.ifftn(half, s[:-1], dim[:-1], norm)
    return irfft(half, s[-1], dim[-1], norm)


def fast_len(length: int) -> int:
    """The least fast FFT length from ``length`` on: a power of two times 1, 9/8, 5/4 or 3/2.

    Smoother lengths exist closer by, but the FFT of a CPU library is slow where many small odd factors meet
    (8100 takes 1.6 times as long as 8192). Where the length is open: twice it, an even number.
    """
    if not known(length):
        return 2 * length
    power = power_of_two(length)
    if power >= 16:
        for sixteenths in (9, 10, 12):
            if power * sixteenths >= 16 * length:
                return power * sixteenths // 16
    return power


def to_complex(pairs: Tensor) -> Tensor:
    """Real pairs ``(..., 2)`` as complex numbers ``(...)``, in float32 or float64."""
    return torch.view_as_complex(pairs.to(working_dtype(pairs)).contiguous())


def complex_linear(modes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex linear map of every group, in real pairs, ``(B, G, I, K, 2)`` to ``(B, G, O, K, 2)``.

    Args:
        modes: float32 or float64.
        weight: real and imaginary part, ``(2, G, I, O)``.
        bias: ``(2, G, O)``.
    """
    (real, imaginary), (b_real, b_imaginary) = weight.to(modes.dtype).mT, bias.to(modes.dtype).unsqueeze(-1)
    if torch.compiler.is_compiling():  # compilers and exporters know few products of complex numbers
        x, y = modes.unbind(-1)
        return torch.stack((real @ x - imaginary @ y + b_real, real @ y + imaginary @ x + b_imaginary), -1)
    mixed = torch.complex(real, imaginary) @ torch.view_as_complex(modes)
    return torch.view_as_real(mixed.add_(torch.complex(b_real, b_imaginary)))


def convolve(values: Tensor, taps: Tensor, start: int) -> Tensor:
    """Linear convolution along the tokens: ``y[i] = sum_j taps[start + i - j] values[j]``.

    Args:
        values: ``(B, H, L, W)``.
        taps: ``(B or 1, H or 1, K)`` with ``start < K``; taps outside are zero.
        start: index of the tap of lag 0.

    Returns:
        ``(B, H, L, W)`` in float32, or float64 where either is.
    """
    length, size = values.shape[2], taps.shape[-1]
    # Circular is linear on the samples that are kept once what wraps round falls short of them.
    padded = fast_len(larger(size, start + length, size + length - 1 - start))
    dtype = working_dtype(values, taps)
    response = rfft(taps.to(dtype).unsqueeze(2), padded)

    def piece(rows: Tensor, response: Tensor) -> Tensor:
        spectrum = rfft(rows.to(dtype), padded) * response
        return irfft(spectrum, padded).narrow(-1, start, length)

    return in_pieces(piece, values.mT, response, padded).mT


def in_pieces(piece: Callable[[Tensor, Tensor], Tensor], rows: Tensor, response: Tensor, padded: int) -> Tensor:
    """``piece(rows, response)``, so few rows at a time that a CPU reuses its buffers.

    Args:
        piece: filters each row by the response of its head.
        rows: ``(B, H, W, L)``.
        response: complex ``(B or 1, H or 1, 1, ...)``.
        padded: length that a row has inside.
    """
    batch, heads, width, length = rows.shape
    batch, heads = max(batch, response.shape[0]), max(heads, response.shape[1])
    row = padded * response.element_size() // 2
    if (
        rows.device.type != "cpu"
        or torch.compiler.is_compiling()
        or batch * heads * width * row <= 2 * piece_bytes(_PIECE_BYTES)
        or 0 in rows.shape
        or 0 in response.shape
    ):
        return piece(rows, response)
    few = max(1, piece_bytes(_PIECE_BYTES) // row)  # rows in a piece
    samples, some = max(1, few // (heads * width)), max(1, few // width)
    rows = rows.expand(batch, heads, width, length)
    response = response.expand(batch, heads, *response.shape[2:])
    done = [
        piece(chunk, theirs).reshape(-1, length)
        for sample, answer in zip(rows.split(samples), response.split(samples), strict=True)
        for head, theirs in zip(sample.split(some, 1), answer.split(some, 1), strict=True)
        for chunk in head.split(few, 2)
    ]
    return torch.cat(done).view(batch, heads, width, length)


def by_products(values: Tensor, spectrum: Tensor, grid: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether ``filter_by_products`` is the faster way: on a CPU, on a small grid, where nobody looks on. A compiler,
    an exporter and a counter of operations get the transforms, of which they know what they are. The products are
    taken in ``dtype``, float32 or float64."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler would note what is asked of its sizes
        and sum(n > 1 for n in grid) > 1  # one long axis is where a transform gains most
        and max(grid) <= SMALL_AXIS
        and math.prod(grid) <= SMALL_GRID[dtype]
        and values.shape[1] == spectrum.shape[1]
        and plain_tensors(values, spectrum)
    )


def filter_by_products(values: Tensor, spectrum: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The circular convolution of values with the filters of half spectra, by products with the matrices of both
    transforms: O(L^2) a row, and both are products of a small matrix with all tokens at once.

    Args:
        values: ``(B or 1, H, L, W)`` in float32 or float64.
        spectrum: complex ``(B or 1, H, *grid[:-1], grid[-1] // 2 + 1)`` of that precision. As for ``irfftn`` on a CPU
            it counts as the nearest one of a real kernel (see ``hermitian``).
        grid: of L tokens.
    """
    heads, width = values.shape[1], values.shape[3]
    forward, inverse = map(torch.from_numpy, _transforms(tuple(grid), values.dtype == torch.float64))
    # Values that come from tokens are a view of them, which this puts together again.
    tokens = values.transpose(1, 2).flatten(2)
    # Laid out like the tokens: strided as it comes, it takes as long as both products (7 x 7 x 1024).
    a, b = (part.flatten(2).mT.contiguous() for part in (spectrum.real, spectrum.imag))
    if width > 1:
        a, b = a.repeat_interleave(width, -1), b.repeat_interleave(width, -1)
    real, imaginary = (forward @ tokens).chunk(2, 1)
    mixed = torch.cat((torch.addcmul(real * a, imaginary, b, value=-1), torch.addcmul(real * b, imaginary, a)), 1)
    return (inverse @ mixed).unflatten(2, (heads, width)).transpose(1, 2)


@functools.lru_cache(maxsize=64)
def _transforms(grid: tuple[int, ...], double: bool) -> tuple[np.ndarray, np.ndarray]:
    """``rfftn`` over a grid of L tokens as a matrix ``(2 K, L)``, real parts over imaginary ones, and ``irfftn`` as
    ``(L, 2 K)``, for the K entries of a half spectrum."""
    turns = np.zeros((1, 1))
    for axis, n in enumerate(grid):
        place = np.arange(n)
        frequency = place if axis < len(grid) - 1 else place[: n // 2 + 1]
        step = frequency[:, None] * place % n / n
        turns = (turns[:, None, :, None] + step[None, :, None, :]).reshape(len(turns) * len(step), -1)
    cosine, sine = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    # Both halves of a spectrum, but for the columns that are their own mirror image; the real part of the sum is the
    # projection.
    last = np.arange(len(turns)) % (grid[-1] // 2 + 1)
    share = np.where(2 * last % grid[-1] == 0, 1.0, 2.0)[:, None] / math.prod(grid)
    kind = np.float64 if double else np.float32
    forward, inverse = np.concatenate((cosine, -sine)), np.concatenate((share * cosine, -share * sine)).T
    return np.ascontiguousarray(forward, kind), np.ascontiguousarray(inverse, kind)


def hermitian(spectrum: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Project a half spectrum onto those of real kernels.

    A real kernel's spectrum satisfies ``s[-u] = conj s[u]``. The half that ``rfftn`` keeps is free but for the columns
    that are their own mirror image, 0 and (even n) n/2 of the last axis; there the projection is the mean of the
    two. CPU libraries take that mean by themselves inside ``irfftn``, CUDA's need not: so it is taken here.

    Args:
        spectrum: complex ``(..., *grid[:-1], grid[-1] // 2 + 1)``.
        grid: the grid of the real kernel.
    """
    last, others = grid[-1], tuple(range(-len(grid), -1))
    if torch.compiler.is_compiling():  # in real pairs: exporters know no views of complex numbers, and maybe no n / 2
        pairs, column = torch.view_as_real(spectrum), torch.arange(last // 2 + 1, device=spectrum.device)
        axes = tuple(axis - 1 for axis in others)
        mirrored = torch.roll(pairs.flip(axes), (1,) * len(axes), axes) if axes else pairs
        mirrored = torch.stack((mirrored[..., 0], -mirrored[..., 1]), -1)
        own = (modulo(2 * column, last) == 0).unsqueeze(-1)
        return torch.view_as_complex(torch.where(own, (pairs + mirrored) / 2, pairs))
    middle = spectrum.narrow(-1, 1, (last - 1) // 2)
    ends = spectrum[..., :: last // 2] if last % 2 == 0 else spectrum.narrow(-1, 0, 1)  # columns 0 and n/2
    mirrored = torch.roll(ends.flip(others), (1,) * len(others), others) if others else ends
    first, *rest = ((ends + mirrored.conj()) / 2).split(1, -1)
    return torch.cat([first, middle, *rest], -1)


def resample_spectrum(spectrum: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """The half spectrum on another grid of the same real kernel, padded with zeros or cropped around lag 0.

    The filter does to its neighbourhood what it did before: its response is interpolated over frequencies in cycles
    a token, exactly where the grid grows.

    Args:
        spectrum: complex half spectrum ``(..., *grid[:-1], grid[-1] // 2 + 1)``, Hermitian.
        grid: its grid.
        size: the grid wanted.
    """
    axes = tuple(range(-len(grid), 0))
    kernel = irfftn(spectrum, grid, dim=axes)
    for axis, old, new in zip(axes, grid, size, strict=True):
        if new == old:
            continue
        kernel = kernel.roll((old - 1) // 2, axis)  # lags -((old - 1) // 2) .. old // 2
        if new > old:
            ends = list(kernel.shape)
            before, after = (new - 1) // 2 - (old - 1) // 2, new // 2 - old // 2
            if old % 2 == 0:
                # The lag old / 2 is also -old / 2; on the larger grid they are two.
                half = kernel.narrow(axis, old - 1, 1) / 2
                kernel = torch.cat([half, kernel.narrow(axis, 0, old - 1), half], axis)
                before -= 1
            parts = []
            for count in (before, after):
                ends[axis] = count
                parts.append(kernel.new_zeros(ends))
            kernel = torch.cat([parts[0], kernel, parts[1]], axis)
        else:
            kernel = kernel.narrow(axis, (old - 1) // 2 - (new - 1) // 2, new)
        kernel = kernel.roll(-((new - 1) // 2), axis)
    return rfftn(kernel, dim=axes)


def interpolate_spectrum(spectrum: Tensor, size: tuple[int, ...]) -> Tensor:
    """Half spectra as images of two channels, resized by bicubic interpolation with aligned corners.

    So GFNet and DFFormer change resolution. Rows are interpolated in storage order, across the jump from the highest
    positive to the highest negative frequency; ``resample_spectrum`` has no such seam.

    Args:
        spectrum: real pairs ``(*half grid, C, 2)``.
        size: the grid wanted.
    """
    half = (*size[:-1], size[-1] // 2 + 1)
    if tuple(spectrum.shape[:-2]) == half:
        return spectrum
    image = spectrum.reshape(1 if len(size) == 1 else spectrum.shape[0], -1, *spectrum.shape[-2:]).flatten(2)
    image = image.movedim(-1, 0).unsqueeze(0)
    image = F.interpolate(image, half if len(size) == 2 else (1, *half), mode="bicubic", align_corners=True)
    return image[0].movedim(0, -1).reshape(*half, *spectrum.shape[-2:])


def fft_flops(grid: tuple[int, ...], real: bool = True) -> int:
    """Operations of one transform over the grid, by the usual count of 5 n log2 n; a real one has half of them."""
    n = math.prod(grid)
    return round((2.5 if real else 5) * n * math.log2(n)) if n > 1 else 0
