"""From prepared rows to the token ids of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequence.data.ragged import Ragged
from sequence.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Numbering:
    """Which ids a model sees: special tokens first, then those of the prepared rows, in their order.

    Attributes:
        vocabulary: its special tokens say what is added; with "eos" every sequence ends with one.
        length: the most tokens of a sequence, the end token included; longer rows are cut.
        fixed: every batch is as long as that, not as long as its longest sequence.
    """

    vocabulary: Vocabulary
    length: int
    fixed: bool = False

    @property
    def room(self) -> int:
        """How many tokens of a row are kept."""
        return self.length - (self.vocabulary.special("eos") is not None)

    def batch(self, rows: Ragged, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), int64, and which of them are real (B, L), bool; padding is at the end."""
        known, specials = len(self.vocabulary.tokens), len(self.vocabulary.specials)
        eos, unknown = self.vocabulary.special("eos"), self.vocabulary.special("unk")
        cut = [rows[index][: self.room] for index in indices]
        lengths = np.array([len(row) for row in cut]) + (eos is not None)
        width = self.length if self.fixed else int(lengths.max(initial=1))
        ids = np.full((len(cut), width), self.vocabulary.special("pad"), np.int64)
        for row, tokens in zip(ids, cut, strict=True):
            numbers = tokens.astype(np.int64)
            if unknown is None:
                row[: len(tokens)] = numbers + specials
            else:
                row[: len(tokens)] = np.where(numbers < known, numbers + specials, unknown)
            if eos is not None:
                row[len(tokens)] = eos
        return torch.from_numpy(ids), torch.from_numpy(np.arange(width) < lengths[:, None])
