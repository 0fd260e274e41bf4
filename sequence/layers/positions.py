"""Where a token stands: the number of real tokens before it in its own sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def places(length: int, mask: Tensor | None, segments: Tensor | None, device: torch.device) -> Tensor:
    """Numbers of the tokens, (L,), or (B, L) where padding or packing makes them differ between rows.

    Padding does not count, so a sequence that is padded on the left has the positions of the trimmed one.
    """
    plain = torch.arange(length, device=device)
    if mask is None and segments is None:
        return plain
    count = (plain + 1).unsqueeze(0) if mask is None else mask.cumsum(1)  # real tokens up to here
    if segments is not None:
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        before = count - (1 if mask is None else mask.long())
        count = count - (before * begins).cummax(1).values
    return (count - 1).clamp(min=0)


def sinusoids(place: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sines in the even and cosines in the odd channels, (..., D): of wavelengths from 2 pi to 10000 * 2 pi (arXiv
    1706.03762, section 3.5)."""
    even = torch.arange(0, dim, 2, device=place.device, dtype=torch.float64)
    angle = place.unsqueeze(-1).double() * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., :dim].to(dtype)
