"""Weights and maps carried over from one grid to another."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.precision import working_dtype

Grid = tuple[int, ...]
Sides = tuple[Tensor, Tensor]  # a matrix for the rows and one for the columns, (after, before) each


def positions(weight: Tensor, axis: int, old: Grid, new: Grid) -> Tensor:
    """One axis of a weight from the positions of one grid to those of another, linearly (area-weighted downwards).

    Args:
        weight: any shape; ``weight.shape[axis] = prod(old)``, the positions of a flattened grid.
        axis: the axis of the positions.
        old, new: grids with as many axes, one or two.

    Raises:
        ValueError: if the grids differ in their axes.
    """
    if len(old) != len(new):
        raise ValueError(f"grid must have {len(old)} axes, as that of the weights, {old}, got {new}")
    if old == new:
        return weight
    moved = weight.movedim(axis, -1)
    lead = moved.shape[:-1]
    image = moved.reshape(1, -1, *(old if len(old) == 2 else (1, *old))).double()
    size = new if len(new) == 2 else (1, *new)
    image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    return image.reshape(*lead, math.prod(new)).movedim(-1, axis).to(weight.dtype).contiguous()


def mixing(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    """A matrix ``(..., L, L)`` over the tokens of one grid as one over another; the sum of a row stays what it was."""
    rows = positions(weight, -2, old, new)
    return positions(rows, -1, old, new) * (math.prod(old) / math.prod(new))


def bicubic(old: Grid, new: Grid, like: Tensor) -> Sides:
    """Bicubic interpolation (pixel centres, no antialiasing) as one matrix a side, in the dtype of ``like``."""
    sides = []
    for before, after in zip(old, new, strict=True):
        eye = torch.eye(before, dtype=working_dtype(like), device=like.device).view(1, before, before, 1)
        side = F.interpolate(eye, (after, 1), mode="bicubic", align_corners=False)
        sides.append(side.view(before, after).mT.to(like.dtype))
    return sides[0], sides[1]


def resample(image: Tensor, sides: Sides) -> Tensor:
    """A map ``(B, rows, columns, C)`` by the matrices of ``bicubic``: half the time of an interpolation upwards."""
    rows, columns = sides
    batch, before, other, dim = image.shape
    image = (rows @ image.reshape(batch, before, other * dim)).view(batch, rows.shape[0], other, dim)
    return columns @ image
