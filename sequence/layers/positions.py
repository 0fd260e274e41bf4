"""Sinusoidal positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(place: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sines in the even and cosines in the odd channels, (..., D): of wavelengths from 2 pi to 10000 * 2 pi (arXiv
    1706.03762, section 3.5)."""
    even = torch.arange(0, dim, 2, device=place.device, dtype=torch.float64)
    angle = place.unsqueeze(-1).double() * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., :dim].to(dtype)
