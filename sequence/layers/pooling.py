"""From tokens to what a head reads."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from matmix.mixers.base import drop_padding

Pool = Literal["mean", "padded_mean", "max", "first", "last", "cls"]
PairFeatures = Literal["concat", "difference_product", "product_difference"]


def pool(x: Tensor, how: str, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
    """Tokens (B, L, D) to one vector a sequence: (B, D), or (B, S, D) of rows in which up to S are packed.

    Args:
        how: "mean" over the real tokens; "padded_mean", their sum over the padded length, as Nystromformer's code
            divides; "max"; "first" and "last" of the real ones, wherever they stand; "cls",
            the first as well, is a learned token that the encoder puts there. Zero where no token is real.
        mask: (B, L), True = a real token.
        segments: (B, L) integers, numbered 0, 1, ... along each row.
    """
    if how not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {how!r}")
    if segments is not None:
        return _pool_packed(x, how, mask, segments)
    if how == "padded_mean" or (how == "mean" and mask is None):
        return drop_padding(x, mask).mean(1)
    if how == "mean":
        assert mask is not None
        weight = mask.to(x.dtype).unsqueeze(-1)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
    if mask is None:
        return x.amax(1) if how == "max" else x[:, -1 if how == "last" else 0]
    nothing = ~mask.any(1, keepdim=True)
    if how == "max":
        return x.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1).masked_fill(nothing, 0)
    place = torch.arange(1, x.shape[1] + 1, device=x.device)
    at = (mask * (place if how == "last" else place.flip(0))).argmax(1)
    return x[torch.arange(len(x), device=x.device), at].masked_fill(nothing, 0)


def _pool_packed(x: Tensor, how: str, mask: Tensor | None, segments: Tensor) -> Tensor:
    """`pool` of every sequence of a row: the same numbers as by itself."""
    if not len(x):
        return x[:, :1]  # no rows, of no sequences
    count = int(segments.max()) + 1
    of = segments.unsqueeze(1) == torch.arange(count, device=x.device).view(1, -1, 1)  # (B, S, L)
    of = of if mask is None else of & mask.unsqueeze(1)
    if how in ("padded_mean", "cls"):
        reason = "divides by a padded length" if how == "padded_mean" else "stands before one sequence"
        raise ValueError(f"pool={how!r} {reason}: packed rows take 'mean', 'max', 'first' or 'last'")
    return torch.stack([pool(x, how, of[:, index]) for index in range(count)], 1)


def pair_features(a: Tensor, b: Tensor, how: str) -> Tensor:
    """What a head reads of two sequences (B, D): (B, 2 D) or (B, 4 D)."""
    parts = {
        "concat": lambda: (a, b),  # Mega
        "difference_product": lambda: (a, b, a - b, a * b),  # S4, S5
        "product_difference": lambda: (a, b, a * b, a - b),  # Nystromformer, PoNet
    }
    if how not in parts:
        raise ValueError(f"pair_features must be one of {', '.join(parts)}, got {how!r}")
    return torch.cat(parts[how](), -1)


PAIR_WIDTH: dict[str, int] = {"concat": 2, "difference_product": 4, "product_difference": 4}
