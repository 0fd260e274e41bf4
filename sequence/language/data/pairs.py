"""Pairs of texts for the sentence structure objective (`sequence.language.structure`), drawn once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from sequence.data.cache import cached
from sequence.data.faults import bad
from sequence.data.ragged import Ragged, RaggedWriter
from sequence.language.data.tokenizer import fingerprint
from sequence.language.data.windows import Prepared
from sequence.language.structure import Pair, text_pairs

GROUP = 1000
"""Neighbouring texts among which strangers are looked for, as published."""


class Pairs(NamedTuple):
    """Those of a split; `pairs[index]` is one."""

    ids: Ragged
    segments: Ragged
    relations: np.ndarray
    sep: int

    def __len__(self) -> int:
        return len(self.relations)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        ids = self.ids[index].tolist()
        first = ids.index(self.sep) + 1
        types = [0] * first + [1] * (len(ids) - first)
        return Pair(ids, types, self.segments[index].tolist(), int(self.relations[index]))


def prepared_pairs(
    found: Prepared, tokens: PreTrainedTokenizerFast, *, length: int, draws: int, name: str, cache: str = ""
) -> dict[str, Pairs]:
    """The pairs of all splits; those of training are drawn `draws` times, each time parted and matched anew.

    Raises:
        BadData: where a split has no two texts behind one another.
    """
    cls, sep = tokens.cls_token_id, tokens.sep_token_id
    assert isinstance(cls, int) and isinstance(sep, int)

    def make(folder: Path) -> dict[str, Any]:
        for number, (split, rows) in enumerate(found.splits.items()):
            relations: list[int] = []
            with RaggedWriter(folder, f"{split}.ids", "uint32") as ids, \
                 RaggedWriter(folder, f"{split}.segments", "uint16") as segments:  # fmt: skip
                for draw in range(draws if split == "train" else 1):
                    for begin in range(0, len(rows), GROUP):
                        some = [rows[at][:-1] for at in range(begin, min(begin + GROUP, len(rows)))]  # without [SEP]
                        generator = np.random.default_rng([number, draw, begin])
                        for pair in text_pairs(some, length=length, cls=cls, sep=sep, generator=generator):
                            ids.append(np.array(pair.ids))
                            segments.append(np.array(pair.segments))
                            relations.append(pair.relation)
            if not relations:
                raise bad(name, 0, f"{split} has no two texts behind one another", "at least two in each split")
            np.save(folder / f"{split}.relations.npy", np.array(relations, np.uint8))
        return {}

    key = {"version": 1, "texts": found.digest, "tokenizer": fingerprint(tokens), "length": length, "draws": draws}
    folder = cached("pairs", key, make, cache).folder
    return {
        split: Pairs(
            Ragged.open(folder, f"{split}.ids"),
            Ragged.open(folder, f"{split}.segments"),
            np.load(folder / f"{split}.relations.npy"),
            sep,
        )
        for split in found.splits
    }
