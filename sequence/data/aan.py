"""Pairs of papers from the ACL Anthology Network (Radev et al. 2013), as the Long Range Arena pairs them: does one cite
the other?

    label<TAB>id1<TAB>id2<TAB>text1<TAB>text2        no header; the label is written as 0.0 or 1.0

Published readers disagree about quotation marks. TensorFlow's, of the 2020 benchmark, takes them as part of the text;
that of Hugging Face, in S4's line of work, takes those around a field away, and joins the lines up to the next mark
where one is not closed. `quoting` chooses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from sequence.data.characters import raw
from sequence.data.faults import BadData, bad, byte_lines, decoded, shown, table, text_lines
from sequence.data.parallel import chunks, ordered_map

NAMES = {f"new_aan_pairs.{part}.tsv": split for part, split in (("train", "train"), ("eval", "val"), ("test", "test"))}
FOLDER = "tsv_data"
ROWS = {"train": 147_086, "val": 18_090, "test": 17_437}
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
CHUNK = 32
"""Rows that a worker gets at once: about 5 MB, of texts of some 75 KB."""


class Document(NamedTuple):
    """The first tokens of a text, and what tells them from others."""

    tokens: np.ndarray
    print: bytes


class Pair(NamedTuple):
    """Two documents and their label."""

    label: int
    documents: tuple[Document, Document]


def read(file: IO[bytes], where: str, *, tokens: str, length: int, quoting: bool) -> Iterator[Pair | BadData]:
    """Every pair, or what is wrong with its row. Lines are split, checked, cut and made numbers in several processes;
    of the file no more than a few chunks are in memory."""
    rows: Iterator[tuple[int, bytes | list[str]]]
    rows = table(text_lines(file, where), where, "\t") if quoting else enumerate(byte_lines(file, where), 1)
    for decoded_rows in ordered_map(partial(_decoded, where, tokens, length), chunks(rows, CHUNK)):
        yield from decoded_rows


def _decoded(where: str, tokens: str, length: int, rows: list[tuple[int, bytes | list[str]]]) -> list[Pair | BadData]:
    found: list[Pair | BadData] = []
    for line, row in rows:
        try:
            found.append(_pair(where, line, row, tokens, length))
        except BadData as error:
            found.append(error)
    return found


def _pair(where: str, line: int, row: bytes | list[str], tokens: str, length: int) -> Pair:
    fields = row if isinstance(row, list) else decoded(row, where, line).rstrip("\r\n").split("\t")
    if len(fields) != len(COLUMNS):
        raise bad(where, line, f"{len(fields)} columns", f"5 with tabs between: {', '.join(COLUMNS)}")
    label = LABELS.get(fields[0])
    if label is None:
        raise bad(where, line, f"label {shown(fields[0])}", ", ".join(LABELS))
    for name, text in zip(COLUMNS[3:], fields[3:], strict=True):
        if not text:
            raise bad(where, line, f"{name} is empty (of the pair {fields[1]}, {fields[2]})", "at least one character")
    first, second = (_document(text, tokens, length) for text in fields[3:])
    return Pair(label, (first, second))


def _document(text: str, tokens: str, length: int) -> Document:
    # Of a text that is cut anyway, no more than is needed is made numbers: a character is at least a byte.
    kept = np.array(raw(text[:length], tokens)[:length])
    return Document(kept, hashlib.blake2b(kept.tobytes(), digest_size=16).digest())
