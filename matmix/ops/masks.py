"""Padding and packing: where the real tokens of a sequence stand, and where one sequence ends and another begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.sizes import modulo


def padding_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Orders ``(B, L)`` of the tokens that move the padding behind a sample's last real token before its first, and
    back: with the first, the last token of every sample is real (if any is)."""
    length = mask.shape[1]
    place = torch.arange(length, device=mask.device)
    last = (place * mask).amax(1, keepdim=True)
    return modulo(place + last + 1, length), modulo(place - last - 1, length)


def in_order(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens ``(B, L, ...)`` in an order ``(B, L)``."""
    index = order.view(*order.shape, *[1] * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def padding_before(mask: Tensor) -> Tensor:
    """Masked tokens before a sample's first real one, ``(B,)``."""
    return (mask.cumsum(1) == 0).sum(1)


def padding_last(mask: Tensor) -> Tensor:
    """The order ``(B, L)`` of the tokens that moves the padding before a sample's first real token behind its end."""
    length = mask.shape[1]
    return modulo(torch.arange(length, device=mask.device) + padding_before(mask).unsqueeze(1), length)


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


def packed_segments(cu_seqlens: Tensor, length: int | None = None) -> Tensor:
    """The segments ``(1, L)`` of sequences in a row, from their cumulative lengths ``(0, n_1, n_1 + n_2, ..., L)``.

    Args:
        cu_seqlens: ``(sequences + 1,)`` integers, as FlashAttention takes them.
        length: L; absent, it is read from the last one, which on a GPU waits for it.
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens must be integers (sequences + 1,), got {cu_seqlens.dtype} {cu_seqlens.shape}")
    length = int(cu_seqlens[-1]) if length is None else length
    place = torch.arange(length, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].contiguous().long(), place, right=True).unsqueeze(0)


def places(
    length: int, mask: Tensor | None = None, segments: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """How many real tokens stand before each in its sequence, ``(L,)``, or ``(B, L)`` where rows differ.

    Padding does not count, so a sequence that is padded on the left has the places of the trimmed one; every segment of
    a packed row begins at 0.
    """
    plain = torch.arange(length, device=device)
    if mask is None and segments is None:
        return plain
    count = (plain + 1).unsqueeze(0) if mask is None else mask.cumsum(1)  # real tokens up to here
    if segments is not None:
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
        before = count - (1 if mask is None else mask.long())
        count = count - (before * begins).cummax(1).values
    return (count - 1).clamp(min=0)


def runs(segments: Tensor) -> Tensor:
    """Segments ``(B, L)`` numbered from 0 in each row as they come; a number that comes again is another one."""
    return F.pad(segments[:, 1:] != segments[:, :-1], (1, 0)).cumsum(1)


def forgetting(log_decay: Tensor, segments: Tensor | None) -> Tensor:
    """Log decays ``(B or 1, H, L, ...)`` with -inf where a new segment ``(B, L)`` begins: no state outlives its own."""
    if segments is None:
        return log_decay
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    return torch.where(begins.view(begins.shape[0], 1, -1, *[1] * (log_decay.dim() - 3)), -math.inf, log_decay)
