"""The splits of the text task, read and prepared once.

The training texts that are held out for validation are drawn by what stands in them, not by where: the same texts
whether they come from the hub or from files, and two equal texts are never on both sides.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sequence.data import labelled, reviews
from sequence.data.cache import cached, source_key
from sequence.data.characters import BYTES, CharacterCount, numbers, raw
from sequence.data.faults import Broken, bad
from sequence.data.labelled import Labelled
from sequence.data.parallel import progress

VERSION = 1


class Reviews(NamedTuple):
    """Texts of the two published splits, whole, with a fingerprint of each (uint64), and what their numbers mean."""

    splits: dict[str, Labelled]
    prints: dict[str, np.ndarray]
    vocabulary: tuple[str, ...]
    digest: str
    facts: dict[str, Any]


@cache
def prepared(data: str, tokens: str, length: int, min_frequency: int, broken: str, cache: str) -> Reviews:
    """Both splits. `length` and `min_frequency` say what a vocabulary of characters is counted on."""
    sources = [file for files in reviews.files_of(data).values() for file in files]
    counted = {"length": length, "min_frequency": min_frequency} if tokens == "characters" else {}
    key = {"version": VERSION, "data": data, "sources": source_key(*sources), "tokens": tokens, "broken": broken}

    def make(folder: Path) -> dict[str, Any]:
        faults, count = Broken(broken), CharacterCount(length)
        vocabulary = list(BYTES)
        for split in ("train", "test"):
            rows, prints = [], []
            with progress(f"reading {split} of {data}", reviews.ROWS, "texts") as advance:
                for text, label in faults.kept(reviews.read(data, split)):
                    rows.append((raw(text, tokens), label))
                    prints.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
                    if tokens == "characters" and split == "train":
                        count.add(rows[-1][0])
                    advance(1)
            if not rows:
                raise bad(data, 0, f"{split} has no row", "at least one row")
            if tokens == "characters":
                vocabulary = vocabulary if split == "test" else count.vocabulary(min_frequency)
                table = numbers(vocabulary)
                rows = [(table[points], label) for points, label in rows]
            labelled.write(folder, split, rows, "uint8" if tokens == "bytes" else "uint16")
            np.save(folder / f"{split}.prints.npy", np.array(prints, np.uint64))
        return {"vocabulary": vocabulary, **faults.facts()}

    entry = cached("text", {**key, **counted}, make, cache)
    splits = {split: labelled.read(entry.folder, split) for split in ("train", "test")}
    prints = {split: np.load(entry.folder / f"{split}.prints.npy") for split in splits}
    facts = {name: value for name, value in entry.facts.items() if name != "vocabulary"}
    return Reviews(splits, prints, tuple(entry.facts["vocabulary"]), entry.digest, facts)


@cache
def divided(
    data: str, tokens: str, length: int, min_frequency: int, broken: str, cache: str, share: float, seed: int
) -> dict[str, Labelled]:
    """The published test set, and the training set with a share of it for validation."""
    found = prepared(data, tokens, length, min_frequency, broken, cache)
    train = found.splits["train"]
    held = held_out(found.prints["train"], train.labels, share, seed)
    if not 0 < held.sum() < len(held):
        raise bad(data, 0, f"held_out={share} of {len(held)} training texts leaves a split empty", "another share")
    parts = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    return {**{split: train.chosen(rows) for split, rows in parts.items()}, "test": found.splits["test"]}


def held_out(prints: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows are for validation (bool): of each class that share, drawn by the texts' fingerprints."""
    chosen = np.zeros(0, np.uint64)
    for label in np.unique(labels):
        mine = prints[labels == label]
        texts, counts = np.unique(mine, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(texts))
        enough = np.searchsorted(np.cumsum(counts[order]), round(share * len(mine)))
        chosen = np.union1d(chosen, texts[order[: enough + 1]])
    return np.isin(prints, chosen)
