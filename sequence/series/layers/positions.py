"""Sinusoidal positions as the published time-series code has them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positions(length: int, dim: int, like: Tensor) -> Tensor:
    """Sines in the even and cosines in the odd channels, (L, D), in the dtype of `like`.

    Computed in float32 and cast, as published: in float64 the outputs of a published model differ by 1e-7. An odd
    width, which the published code cannot build, has one cosine less.
    """
    place = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1)
    even = torch.arange(0, dim, 2, device=like.device).float()
    angle = place * (even * -(math.log(10000.0) / dim)).exp()
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[:, :dim].to(like.dtype)
