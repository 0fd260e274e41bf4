"""Padding: where the real tokens of a sequence stand, and bringing them together."""

from __future__ import annotations

import torch
from torch import Tensor


def padding_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Orders ``(B, L)`` of the tokens that move the padding behind a sample's last real token before its first, and
    back: with the first, the last token of every sample is real (if any is)."""
    length = mask.shape[1]
    place = torch.arange(length, device=mask.device)
    last = (place * mask).amax(1, keepdim=True)
    return (place + last + 1) % length, (place - last - 1) % length


def in_order(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens ``(B, L, ...)`` in an order ``(B, L)``."""
    index = order.view(*order.shape, *[1] * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def padding_before(mask: Tensor) -> Tensor:
    """Masked tokens before a sample's first real one, ``(B,)``."""
    return (mask.cumsum(1) == 0).sum(1)


def continued(past: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """What came before ``(B, P, ...)`` and then tokens ``(B, L, ...)``, with the padding before the first real token
    moved in front of both, so that it parts nothing."""
    joined = torch.cat((past.to(tokens.dtype), tokens), 1)
    if mask is None:
        return joined
    count = past.shape[1]
    place, padding = torch.arange(joined.shape[1], device=mask.device), padding_before(mask).unsqueeze(1)
    source = torch.where(place < padding, count + place, place - padding)
    return in_order(joined, torch.where(place < padding + count, source, place))
