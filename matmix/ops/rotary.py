"""Rotary position embedding: only the distance of two tokens enters the product of a query and a key."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.ops.precision import full_precision, working_dtype


def turn_pairs(x: Tensor, place: Tensor) -> Tensor:
    """Channels 2 m and 2 m + 1 of ``x (B, H, L, E)``, as a point of the plane, turned by ``place * 10000^(-2 m / E)``
    radians (arXiv 2104.09864, section 3.2.2); places ``(L,)`` or ``(B, L)``.

    Angles are found in float64: at place 16,384 float32 is off by a thousandth of a radian.
    """
    width, dtype = x.shape[3], working_dtype(x)
    with full_precision(x.device):
        rate = 10000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width)
        angle = place.double().unsqueeze(-1) * rate
        angle = angle if place.dim() == 1 else angle.unsqueeze(1)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        even, odd = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)
