"""Texts as numbers: their bytes, or their characters by a vocabulary that is made from the training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np

Tokens = Literal["bytes", "characters"]
BYTES = tuple(f"{byte:#04x}" for byte in range(256))
"""The vocabulary of bytes: token i is the byte i."""
CODE_POINTS = 0x110000


def raw(text: str, tokens: str) -> np.ndarray:
    """The bytes of a text (uint8), or the code points of its characters (uint32)."""
    if tokens == "bytes":
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


class CharacterCount:
    """How often each character occurs in texts, each counted up to `length`."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.counts: Counter[int] = Counter()

    def add(self, points: np.ndarray) -> None:
        found, counts = np.unique(points[: self.length], return_counts=True)
        for point, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.counts[point] += count

    def vocabulary(self, min_frequency: int = 1) -> list[str]:
        """The characters that are frequent enough, the most frequent first."""
        kept = [(-count, point) for point, count in self.counts.items() if count >= min_frequency]
        return [chr(point) for _, point in sorted(kept)]


def numbers(characters: Iterable[str]) -> np.ndarray:
    """A table from code points to places in a vocabulary (uint16); what is not in it becomes its length."""
    listed = list(characters)
    if len(listed) >= 2**16:
        raise ValueError(f"the vocabulary has {len(listed):,} characters; allowed: fewer than 65,536")
    table = np.full(CODE_POINTS, len(listed), np.uint16)
    table[[ord(character) for character in listed]] = np.arange(len(listed), dtype=np.uint16)
    return table
