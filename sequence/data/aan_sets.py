"""The splits of the retrieval task, read once into arrays that are mapped into memory.

A paper stands in many pairs. Each is kept once, cut to the length that is asked for; a split is pairs of numbers of
documents. Reading needs memory for a few hundred rows and 16 bytes a document, whatever the size of the files.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sequence.data import aan
from sequence.data.cache import cached, source_key
from sequence.data.characters import BYTES, CharacterCount, numbers
from sequence.data.faults import Broken, bad
from sequence.data.parallel import progress
from sequence.data.ragged import Ragged, RaggedWriter
from sequence.data.release import Found, files, sources

VERSION = 1


class Pairs(NamedTuple):
    """Numbers of two documents (n, 2), and a label each."""

    documents: np.ndarray
    labels: np.ndarray


class Papers(NamedTuple):
    """All documents, the pairs of each split, and what the documents' numbers mean."""

    documents: Ragged
    splits: dict[str, Pairs]
    vocabulary: tuple[str, ...]
    digest: str
    facts: dict[str, Any]


@cache
def prepared(data: str, tokens: str, length: int, quoting: bool, broken: str, cache: str) -> Papers:
    """The three splits, of a folder of files or of the packed release."""
    used = sources(data, list(aan.NAMES), aan.FOLDER)
    key = {"version": VERSION, "sources": source_key(*used), "tokens": tokens, "length": length}

    def make(folder: Path) -> dict[str, Any]:
        reading = _Reading(folder, tokens, length, quoting, Broken(broken))
        with reading.writer:
            for found in files(data, list(aan.NAMES), aan.FOLDER):
                reading.split(found)
        return reading.finished()

    entry = cached("retrieval", {**key, "quoting": quoting, "broken": broken}, make, cache)
    splits = {split: Pairs(*(np.load(entry.folder / f"{split}.{part}.npy") for part in ("pairs", "labels")))
              for split in aan.ROWS}  # fmt: skip
    facts = {name: value for name, value in entry.facts.items() if name != "vocabulary"}
    documents = Ragged.open(entry.folder, "documents")
    return Papers(documents, splits, tuple(entry.facts["vocabulary"]), entry.digest, facts)


class _Reading:
    """One pass over the files, in whatever order they come."""

    def __init__(self, folder: Path, tokens: str, length: int, quoting: bool, faults: Broken) -> None:
        self.folder, self.tokens, self.length, self.quoting, self.faults = folder, tokens, length, quoting, faults
        self.bytes = tokens == "bytes"
        # Of characters the vocabulary is known at the end, so code points are written first.
        self.writer = RaggedWriter(folder, "documents" if self.bytes else "points", "uint8" if self.bytes else "uint32")
        self.known: dict[bytes, int] = {}
        self.characters = CharacterCount(length)
        self.where: dict[str, str] = {}

    def split(self, found: Found) -> None:
        split = aan.NAMES[found.name]
        self.where[split] = found.where
        pairs: list[tuple[int, ...]] = []
        labels: list[int] = []
        in_train: set[int] = set()
        rows = aan.read(found.file, found.where, tokens=self.tokens, length=self.length, quoting=self.quoting)
        with progress(f"reading {found.name}", aan.ROWS[split], "pairs") as advance:
            for pair in self.faults.kept(rows):
                numbers_ = tuple(map(self._number, pair.documents))
                if split == "train" and not self.bytes:
                    for number, document in zip(numbers_, pair.documents, strict=True):
                        if number not in in_train:
                            in_train.add(number)
                            self.characters.add(document.tokens)
                pairs.append(numbers_)
                labels.append(pair.label)
                advance(1)
        if not pairs:
            raise bad(found.where, 0, "it has no row", "at least one row")
        np.save(self.folder / f"{split}.pairs.npy", np.array(pairs, np.int32))
        np.save(self.folder / f"{split}.labels.npy", np.array(labels, np.uint8))

    def finished(self) -> dict[str, Any]:
        vocabulary = list(BYTES) if self.bytes else self.characters.vocabulary()
        if not self.bytes:
            points, table = Ragged.open(self.folder, "points"), numbers(vocabulary)
            with RaggedWriter(self.folder, "documents", "uint16") as writer:
                for index in range(len(points)):
                    writer.append(table[points[index]])
            for file in self.folder.glob("points.*"):
                file.unlink()
        return {"vocabulary": vocabulary, "files": self.where, **self.faults.facts()}

    def _number(self, document: aan.Document) -> int:
        number = self.known.setdefault(document.print, len(self.known))
        if number == len(self.writer):
            self.writer.append(document.tokens)
        return number
