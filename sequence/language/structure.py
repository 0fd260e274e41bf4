"""PoNet's sentence structure objective (arXiv 2110.02442, section 3.3): are two texts in order, swapped, or strangers?

Beside the masked words, a model is shown two texts A and B, each some sentences of a document, and says which of three
it is: B follows A (0), B stands in front of A (1), or B is from elsewhere in the documents (2); each third of the time.

    for pair in text_pairs(sentences, length=512, cls=101, sep=102, generator=np.random.default_rng(0)):
        ...
    model = MatmixForPreTraining(shapes.ponet())
    model(**batch_of(pairs, pad=0), labels=labels).loss          # labels of the masked words: their loss is added
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

RELATIONS = ("in order", "swapped", "strangers")
AROUND = 3
"""Special tokens of a pair: [CLS] A [SEP] B [SEP]."""

Sentence = Sequence[int] | np.ndarray


class Pair(NamedTuple):
    """Two texts as a model reads them, and what they are to each other."""

    ids: list[int]
    types: list[int]
    """0 up to the first [SEP], 1 behind it."""
    segments: list[int]
    """Number of the sentence that each token is in; special tokens are sentences of their own."""
    relation: int


def text_pairs(
    sentences: Sequence[Sentence], *, length: int, cls: int, sep: int, generator: np.random.Generator,
    short: float = 0.1,
) -> Iterator[Pair]:  # fmt: skip
    """Pairs of texts, from the sentences of documents one behind the other.

    Neighbouring sentences are gathered until they fill a row, and parted somewhere between two of them. What is too
    long loses tokens at the beginning or the end of its longer text, as chance will have it. Gatherings of one
    sentence are left out: the published code reads the sentence a second time as its own continuation.

    Args:
        sentences: token ids; empty ones are passed over.
        length: the most tokens of a pair, special ones included.
        cls, sep: ids of the special tokens.
        generator: draws where texts are parted, what they become, and what is cut.
        short: how often all rows are aimed at a shorter length, 2 to `length`, drawn once a call.

    Raises:
        ValueError: for a length that holds no pair.
    """
    room = length - AROUND
    if room < 2:
        raise ValueError(f"length: a pair has at least {AROUND + 2} tokens, got {length}")
    aim = int(generator.integers(2, room, endpoint=True)) if generator.random() < short else room
    gathered = list(_gathered(sentences, aim))
    for index, chunk in enumerate(gathered):
        if len(chunk) < 2:
            continue
        cut = int(generator.integers(1, len(chunk)))
        first, second, relation = chunk[:cut], chunk[cut:], 0
        drawn = generator.random()
        if drawn < 1 / 3:
            first, second, relation = second, first, 1
        elif drawn < 2 / 3 and len(gathered) > 1:
            other = int(generator.integers(len(gathered) - 1))
            second, relation = gathered[other + (other >= index)], 2
        yield _pair(_numbered(first), _numbered(second), relation, room, cls, sep, generator)


def _gathered(sentences: Sequence[Sentence], aim: int) -> Iterator[list[Sentence]]:
    """Neighbours, until they have so many tokens together."""
    chunk: list[Sentence] = []
    for sentence in sentences:
        if not len(sentence):
            continue
        chunk.append(sentence)
        if sum(map(len, chunk)) >= aim:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _numbered(sentences: list[Sentence]) -> list[tuple[int, int]]:
    """Each token and the number of its sentence."""
    return [(int(token), number) for number, sentence in enumerate(sentences) for token in sentence]


def _pair(
    a: list[tuple[int, int]], b: list[tuple[int, int]], relation: int, room: int, cls: int, sep: int,
    generator: np.random.Generator,
) -> Pair:  # fmt: skip
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop(0 if generator.random() < 0.5 else -1)
    ids, types, segments = [cls], [0], [0]
    for kind, text in enumerate((a, b)):
        ids += [token for token, _ in text] + [sep]
        types += [kind] * (len(text) + 1)
        before = segments[-1] + 1 - text[0][1]
        segments += [number + before for _, number in text]
        segments.append(segments[-1] + 1)
    return Pair(ids, types, segments, relation)


def batch_of(pairs: Sequence[Pair], pad: int, length: int = 0) -> dict[str, Tensor]:
    """Pairs as a model takes them, padded behind with `pad`, to `length` or the longest: the arguments of
    `MatmixForPreTraining` but the labels of masked words."""
    width = length or max((len(pair.ids) for pair in pairs), default=1)

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        return torch.stack([F.pad(torch.tensor(row), (0, width - len(row)), value=filler) for row in rows])

    return {
        "input_ids": padded([pair.ids for pair in pairs], pad),
        "token_type_ids": padded([pair.types for pair in pairs], 0),
        "segment_ids": padded([pair.segments for pair in pairs], 0),
        "attention_mask": padded([[1] * len(pair.ids) for pair in pairs], 0),
        "next_sentence_label": torch.tensor([pair.relation for pair in pairs]),
    }
