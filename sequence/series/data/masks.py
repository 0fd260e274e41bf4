"""What is missing in the windows of an imputation: single values, blocks of time, or whole columns."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Missing = Literal["points", "blocks", "channels"]
KINDS = get_args(Missing)
BLOCK = 12
"""Steps of a block."""


def missing(kind: Missing, rate: float, shape: tuple[int, int, int], seed: int) -> Tensor:
    """True where a value of windows (B, L, C) is missing, drawn from a seed.

    Args:
        kind: "points" are drawn one by one; "blocks" of 12 steps of a column, which may overlap; of "channels" as many
            as come nearest to the rate, at least one and never all, each over the whole window.
        rate: the share of values that is missing, on average.
    """
    generator = torch.Generator().manual_seed(seed)
    count, length, channels = shape
    if kind == "points":
        return torch.rand(shape, generator=generator) <= rate
    if kind == "blocks":
        block = min(BLOCK, length)
        # A value is missing where one of the `block` starts that reach it is drawn.
        starts = torch.rand((count, length + block - 1, channels), generator=generator) < 1 - (1 - rate) ** (1 / block)
        return starts.unfold(1, block, 1).any(-1)
    if channels < 2:
        raise ValueError(f"missing={kind!r} needs at least 2 columns, got {channels}")
    gone = min(channels - 1, max(1, round(rate * channels)))
    order = torch.rand((count, channels), generator=generator).argsort(-1).argsort(-1)
    return (order < gone).unsqueeze(1).expand(shape)
