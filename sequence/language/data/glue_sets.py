"""The parts of a task of GLUE as token ids, read and prepared once."""

from __future__ import annotations

from functools import cache as keep
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sequence.data.cache import cached, source_key
from sequence.data.faults import Broken, bad
from sequence.data.ragged import Ragged, RaggedWriter
from sequence.language.data import glue
from sequence.language.data.tokenizer import fingerprint

AT_ONCE = 1000
"""Examples that the tokenizer gets at a time."""


class Part(NamedTuple):
    """Ids of each example with its special tokens, where its second text begins, and its label."""

    rows: Ragged
    second: np.ndarray  # (n,) the length of the row where there is no second text
    labels: np.ndarray  # (n,) float

    def chosen(self, indices: np.ndarray) -> Part:
        """Some of them; the ids are shared."""
        return Part(self.rows.chosen(indices), self.second[indices], self.labels[indices])

    def batch(self, indices: list[int], pad: int, width: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B, L), padded behind, which text each is of (0 or 1), and which are real.

        Args:
            indices: of examples.
            pad: the id of padding.
            width: L; 0 is the longest.
        """
        lengths = self.rows.lengths[indices]
        places = np.arange(width or int(lengths.max(initial=1)))
        ids = np.full((len(indices), len(places)), pad, np.int64)
        for row, index in zip(ids, indices, strict=True):
            row[: len(self.rows[index])] = self.rows[index]
        real = places < lengths[:, None]
        kinds = (places >= self.second[indices][:, None]) & real
        return torch.from_numpy(ids), torch.from_numpy(kinds.astype(np.int64)), torch.from_numpy(real)


class Prepared(NamedTuple):
    parts: dict[str, Part]
    digest: str
    facts: dict[str, Any]


def prepared(
    data: str, name: str, tokens: PreTrainedTokenizerFast, length: int, broken: str = "stop", cache: str = ""
) -> Prepared:
    """All parts of a task. Pairs that are too long lose words of the longer text, as in BERT's code."""
    files = [file for part in glue.files_of(data, name).values() for file in part]
    return _prepared(data, name, tokens, length, broken, cache, str(source_key(*files)))


@keep
def _prepared(
    data: str, name: str, tokens: PreTrainedTokenizerFast, length: int, broken: str, cache: str, sources: str
) -> Prepared:
    def make(folder: Path) -> dict[str, Any]:
        faults, cut = Broken(broken), {}
        for part in glue.parts(name):
            examples = faults.kept(glue.read(data, name, part))
            seconds, labels, longer = [], [], 0
            with RaggedWriter(folder, part, "uint16" if len(tokens) <= 2**16 else "uint32") as writer:
                while some := list(islice(examples, AT_ONCE)):
                    texts = [list(column) for column in zip(*(example.texts for example in some), strict=True)]
                    found = tokens(*texts, truncation=True, max_length=length, verbose=False)
                    for ids, kinds in zip(found["input_ids"], kinds_of(found), strict=True):
                        writer.append(np.array(ids))
                        seconds.append(kinds.index(1) if 1 in kinds else len(ids))
                        longer += len(ids) == length
                    labels += [example.label for example in some]
            if not labels:
                raise bad(data, 0, f"{part} of {name} has no row", "at least one")
            np.save(folder / f"{part}.second.npy", np.array(seconds, np.int64))
            np.save(folder / f"{part}.labels.npy", np.array(labels))
            cut[part] = round(longer / len(labels), 4)
        return {"share that fills the length or is cut": cut, **faults.facts()}

    key = {"version": 1, "data": data, "name": name, "tokenizer": fingerprint(tokens), "length": length}
    entry = cached(f"glue-{name}", {**key, "broken": broken, "sources": sources}, make, cache)
    parts = {
        part: Part(
            Ragged.open(entry.folder, part),
            np.load(entry.folder / f"{part}.second.npy"),
            np.load(entry.folder / f"{part}.labels.npy"),
        )
        for part in glue.parts(name)
    }
    return Prepared(parts, entry.digest, entry.facts)


def kinds_of(found: Any) -> list[list[int]]:
    """Which text each token is of: what the tokenizer's template says of pairs, whatever the model would make of it."""
    return [[kind or 0 for kind in encoding.type_ids] for encoding in found.encodings]


def divided(train: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Training examples, and a share of them that is held out, drawn by their number."""
    order = np.random.default_rng(seed).permutation(len(train.labels))
    held = np.sort(order[: round(share * len(order))])
    kept = np.setdiff1d(order, held)
    return train.chosen(kept), train.chosen(held)
