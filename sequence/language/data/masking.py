"""BERT's masking: some words of a text are to be said, and most of these are hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matmix.sampling import stream
from sequence.data.labels import IGNORED

HIDING = 0x6D6C6D  # sets the draws of what is hidden apart from those of the order


class Shares(NamedTuple):
    """Of words that are to be said: shown as [MASK], and shown as another word; the others stay."""

    hidden: float = 0.8
    other: float = 0.1


class Draws(NamedTuple):
    """Uniform numbers in [0, 1), (B, L) each: whether a word is to be said, what is shown, and which other word."""

    chosen: Tensor
    shown: Tensor
    word: Tensor


def draws(seed: int, index: int, *shape: int) -> Draws:
    """Those that follow from two numbers."""
    found = torch.rand(3, *shape, generator=torch.Generator().manual_seed(stream(stream(HIDING, seed), index)))
    return Draws(*found)


def masked(
    ids: Tensor, drawn: Draws, words: Tensor, mask_id: int, rate: float, shares: Shares
) -> tuple[Tensor, Tensor]:
    """Ids (B, L) as they are shown, and the targets: the id where one is to be said, else `IGNORED`.

    Args:
        ids: of texts, their special tokens and padding.
        drawn: at least (B, L); what stands beyond is not used.
        words: (V,) bool, the ids that may be targets, and that may stand in another's place.
        mask_id: of the token that hides.
        rate: the share of words that are targets, each by itself.
        shares: what is shown in their place.
    """
    chosen, shown, word = (part[: ids.shape[0], : ids.shape[1]] for part in drawn)
    target = words[ids] & (chosen < rate)
    number = words.nonzero().squeeze(1)
    others = number[(word * len(number)).long().clamp(max=len(number) - 1)]
    found = torch.where(target & (shown < shares.hidden), mask_id, ids)
    replaced = target & (shown >= shares.hidden) & (shown < shares.hidden + shares.other)
    return torch.where(replaced, others, found), torch.where(target, ids, IGNORED)
