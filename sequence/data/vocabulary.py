"""Which number stands for which token.

Prepared data hold tokens without special ones, counted from 0. The numbers that a model sees have the special tokens
first, in the order in which they are named, so one prepared file serves every source's convention:

    ("pad",)                        0 = padding, tokens from 1                          (Long Range Arena, 2020)
    ("pad", "unk", "eos")           0, 1, 2; every sequence ends with 2                 (S4)
    ("mask", "pad", "unk", "eos")   one to hide tokens with, for masked pretraining     (SPT)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPECIAL = {
    "pad": "fills a batch up",
    "unk": "stands for what the vocabulary has not",
    "eos": "ends every sequence",
    "mask": "stands for a token that is hidden",
}


@dataclass(frozen=True)
class Vocabulary:
    """Special tokens, then the others."""

    tokens: tuple[str, ...]
    specials: tuple[str, ...] = ("pad",)

    def __post_init__(self) -> None:
        check_specials(self.specials)

    def __len__(self) -> int:
        return len(self.specials) + len(self.tokens)

    def special(self, name: str) -> int | None:
        """The number of a special token; None where there is none of that name."""
        return self.specials.index(name) if name in self.specials else None

    def words(self) -> list[str]:
        """Every token by its number."""
        return [*(f"<{name}>" for name in self.specials), *self.tokens]


def check_specials(specials: Sequence[str]) -> None:
    """Refuse what is no order of special tokens with padding among them."""
    if "pad" not in specials or len(set(specials)) < len(specials) or set(specials) - set(SPECIAL):
        raise ValueError(f"specials must be pad and any of unk, eos, mask, each at most once, got {specials!r}")
