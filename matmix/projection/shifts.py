"""Classes that look alike at every token: convolutions. Each tap is the mean of the entries at its lag."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from matmix.matrices.algebra import Product
from matmix.matrices.banded import Banded
from matmix.matrices.base import Matrix
from matmix.matrices.circulant import Circulant
from matmix.matrices.convolution import Convolution
from matmix.matrices.selection import Selection
from matmix.matrices.toeplitz import CausalToeplitz, Toeplitz
from matmix.projection.base import Grid, register_projection, square, whole, windows
from matmix.projection.patterns import places, window


def lag_means(entries: Tensor, grid: Grid, spans: Grid) -> Tensor:
    """Means of the entries of equal lag ``(i - j) mod spans``, axis by axis: ``(B or 1, H, *spans)``."""
    lags = torch.zeros((), dtype=torch.long, device=entries.device)
    for place, span in zip(places(grid, entries.device).unbind(1), spans, strict=True):
        lags = lags * span + (place.unsqueeze(1) - place) % span
    flat = lags.flatten()
    sums = entries.new_zeros(*entries.shape[:2], math.prod(spans)).index_add(2, flat, entries.flatten(2))
    return (sums / flat.bincount(minlength=math.prod(spans))).unflatten(2, spans)


@register_projection("toeplitz", parameters="2 L - 1; on an image (2 rows - 1) (2 columns - 1)", cost="O(L log L W)")
def toeplitz(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Convolutions with a kernel of any length, zeros beyond the sequence or image."""
    square(entries, "toeplitz")
    spans = tuple(2 * size - 1 for size in grid)
    taps = lag_means(entries, grid, spans)
    if len(grid) == 1:
        return Toeplitz(taps.roll(grid[0] - 1, 2)), spans[0]
    # On an image: the image in the corner of one so large that nothing wraps round, and out of it again.
    large = torch.arange(math.prod(spans), device=entries.device).view(spans)
    corner = large[tuple(slice(size) for size in grid)].reshape(1, 1, -1)
    inverse = torch.full((1, 1, large.numel()), -1, device=entries.device)
    inverse[0, 0, corner.flatten()] = torch.arange(corner.numel(), device=entries.device)
    enlarge = Selection.of(inverse, corner.numel(), entries.dtype)
    crop = Selection.of(corner, large.numel(), entries.dtype)
    return Product.of(crop, Circulant.from_kernel(taps, spans), enlarge), large.numel()


@register_projection("sequence_toeplitz", parameters="2 L - 1", cost="O(L log L W)", axes=2)
def sequence_toeplitz(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Convolutions over the tokens in their order, with a kernel of any length; an image is read row by row.

    On a sequence the same as ``toeplitz``. On an image it is another class: what is so many tokens further on may
    stand at the other end of the next row.
    """
    square(entries, "sequence_toeplitz")
    return toeplitz(entries, (entries.shape[3],))


@register_projection("causal_toeplitz", parameters="L", cost="O(L log L W)")
def causal_toeplitz(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Convolutions over what came before, with a kernel of any length; an image is read row by row."""
    length = square(entries, "causal_toeplitz")
    return CausalToeplitz(lag_means(entries, (length,), (2 * length - 1,))[..., :length]), length


@register_projection("circulant", parameters="L", cost="O(L log L W)")
def circulant(entries: Tensor, grid: Grid) -> tuple[Matrix, int]:
    """Convolutions that wrap round, on the sequence or along each axis of the image."""
    length = square(entries, "circulant")
    return Circulant.from_kernel(lag_means(entries, grid, grid), grid), length


@register_projection("convolution", parameters="kernel^axes", cost="O(L kernel^axes W)", size="kernel", sizes=windows)
def convolution(entries: Tensor, grid: Grid, kernel: int) -> tuple[Matrix, int]:
    """Convolutions with ``kernel`` taps about the token (on an image along each axis).

    A ``Convolution`` where the matrix is the same for all samples; that class has one kernel a head, so that matrices
    of several samples are ``Banded`` ones with equal entries along each diagonal.
    """
    square(entries, "convolution")
    kernel = whole("kernel", kernel, 2 * max(grid) - 1, odd=True)
    bands, offsets, inside = window(entries, grid, kernel)
    taps = bands.sum(2) / inside.sum(0)
    if entries.shape[0] == 1 and len(grid) in (1, 2):
        sides = tuple(min(kernel, 2 * size - 1) for size in grid)
        return Convolution.centred(taps[0].unflatten(1, sides), grid), len(offsets)
    return Banded(taps.unsqueeze(2).expand_as(bands).masked_fill(~inside, 0), offsets), len(offsets)
