"""Texts as windows of token ids: packed, one text behind the other and cut into full rows, or a text a row.

A window is without the special tokens around it: a row is [CLS] window [SEP]. Packed texts have a [SEP] between them.
Prepared windows lie in the cache, to be drawn from in any order; those of a stream come as they are read, and blocks of
them are shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache as keep
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from matmix.sampling import stream
from sequence.data.cache import cached
from sequence.data.faults import bad
from sequence.data.ragged import Ragged, RaggedWriter
from sequence.language.data.texts import Texts
from sequence.language.data.tokenizer import fingerprint

Pad = Literal["packed", "batch", "length"]
AROUND = 2
"""Special tokens around a window."""
BLOCK = 8192
"""Windows of a stream, about, that are shuffled together: a million tokens in windows of 128."""
AT_ONCE = 1000
"""Texts that the tokenizer gets at a time."""


class Prepared(NamedTuple):
    """The ids of every text of a split, a separator behind each, and the checksum of all files."""

    splits: dict[str, Ragged]
    digest: str


def encoded(texts: Iterable[str], tokens: PreTrainedTokenizerFast) -> Iterator[np.ndarray]:
    """The ids of each text without special tokens; texts without any id are left out."""
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    source = iter(texts)
    while some := list(islice(source, AT_ONCE)):
        for ids in tokens(some, verbose=False, **options)["input_ids"]:
            if ids:
                yield np.array(ids, np.int64)


def prepared(texts: Texts, tokens: PreTrainedTokenizerFast, cache: str = "") -> Prepared:
    """All texts as ids, read and written once."""

    def make(folder: Path) -> dict[str, Any]:
        for split, read in texts.splits.items():
            with RaggedWriter(folder, split, "uint16" if len(tokens) <= 2**16 else "uint32") as writer:
                for ids in encoded(read(), tokens):
                    writer.append(np.append(ids, tokens.sep_token_id))
        return {}

    key = {"version": 1, "tokenizer": fingerprint(tokens), **texts.key}
    entry = cached("texts", key, make, cache)
    return Prepared({split: Ragged.open(entry.folder, split) for split in texts.splits}, entry.digest)


def windows(rows: Ragged, room: int, pad: Pad, name: str) -> Ragged:
    """The windows of a split: all of `room` tokens where packed (the tail of the split is left out), else each text
    cut into some of at most `room`.

    Raises:
        BadData: where the split has not even one.
    """
    if pad == "packed":
        count = len(rows.values) // room
        if not count:
            raise bad(name, 0, f"{len(rows.values)} tokens, less than a window", f"at least {room}, length - {AROUND}")
        starts = np.arange(count) * room
        return Ragged(rows.values, starts, starts + room)
    if not len(rows):
        raise bad(name, 0, "no text with a token", "at least one")
    ends = rows.ends - 1  # without the separator
    counts = -(-(ends - rows.starts) // room)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(rows.starts, counts) + room * (np.arange(counts.sum()) - first)
    return Ragged(rows.values, starts, np.minimum(starts + room, np.repeat(ends, counts)))


def streamed(
    read: Callable[[], Iterator[str]],
    tokens: PreTrainedTokenizerFast,
    room: int,
    pad: Pad,
    name: str,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
) -> Iterator[list[np.ndarray]]:
    """The windows of each batch of a stream without end, from step `start` on, which follow from seed and step alone.

    The stream is read in order, from the beginning again where it ends. Blocks of about `BLOCK` windows are shuffled by
    (seed, number of the block). To begin later, what was before is read and left out: it costs the tokenizer's time.
    """
    source = _endless(read, tokens, room, pad, name)
    among = max(1, BLOCK // batch_size)
    for _ in islice(source, start // among * among * batch_size):
        pass
    step = start
    while True:
        block = list(islice(source, among * batch_size))
        drawn = torch.randperm(len(block), generator=torch.Generator().manual_seed(stream(seed, step // among)))
        for at in drawn.view(among, batch_size)[step % among :]:
            yield [block[index] for index in at.tolist()]
            step += 1


def _endless(
    read: Callable[[], Iterator[str]], tokens: PreTrainedTokenizerFast, room: int, pad: Pad, name: str
) -> Iterator[np.ndarray]:
    left = np.zeros(0, np.int64)
    while True:
        seen = 0
        for ids in encoded(read(), tokens):
            seen += len(ids)
            if pad != "packed":
                yield from (ids[at : at + room] for at in range(0, len(ids), room))
                continue
            left = np.concatenate((left, ids, [tokens.sep_token_id]))
            full = len(left) // room * room
            yield from left[:full].reshape(-1, room)
            left = left[full:]
        if not seen:
            raise bad(name, 0, "no text with a token", "at least one")


def rows_of(
    found: Sequence[np.ndarray], tokens: PreTrainedTokenizerFast, width: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Windows as ids (B, L), each in its special tokens and padded behind, and which are real (None where all are).

    Args:
        found: the windows.
        tokens: says the special tokens.
        width: L; 0 is the longest.
    """
    lengths = np.array([len(row) + AROUND for row in found])
    ids = np.full((len(found), width or int(lengths.max(initial=1))), tokens.pad_token_id, np.int64)
    for row, window in zip(ids, found, strict=True):
        row[0], row[len(window) + 1] = tokens.cls_token_id, tokens.sep_token_id
        row[1 : len(window) + 1] = window
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return torch.from_numpy(ids), None if mask.all() else torch.from_numpy(mask)


@keep
def ordinary(tokens: PreTrainedTokenizerFast) -> Tensor:
    """Which ids (V,) are words: no special token and none that was added."""
    from sequence.language.data.tokenizer import special_ids

    words = torch.ones(len(tokens), dtype=torch.bool)
    words[special_ids(tokens)] = False
    return words
