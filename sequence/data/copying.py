"""Copying: strings (Jelassi et al. 2024, arXiv 2402.01032) and the place that a pointer names (arXiv 2404.08819).

$abcde|abcde.            "copy"
$cd|abcdefg|efg.         "prefix_ngram": what stands behind the n-gram, which comes first
$abcdefg|cdefg.          "suffix_ngram": the n-gram comes last, and the answer follows on it
"""

from __future__ import annotations

import random as standard
from collections import Counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sequence.data.labels import IGNORED

Form = Literal["copy", "prefix_ngram", "suffix_ngram"]
ATTEMPTS = 10
"""Strings that are drawn until one has an n-gram that occurs once; as published."""


def check_copying(form: Form, shortest: int, longest: int, ngram: int, answer: int) -> None:
    """Room for the n-gram, its answer, and a choice of places."""
    least = 1 if form == "copy" else ngram + answer + 3
    if not least <= shortest <= longest:
        raise ValueError(
            f"copying: shortest and longest must be at least {least} and in order, got {shortest} and {longest}"
        )


def copying_row(
    random: np.random.RandomState, form: Form, letters: int, shortest: int, longest: int, ngram: int = 3,
    answer: int = 0,
) -> tuple[list[int], int]:  # fmt: skip
    """One example, and how many of its tokens come before the answer: the numbers of the published generator.

    Letters are 0 and up; then begin, separator, end and padding have the next ids. An `answer` of 0 is all the rest.

    Published: a string is drawn again until some n-gram occurs once, and then any n-gram but the last is taken, its
    first place: it need not be the one that occurs once, and then the answer is not the only right one.
    """
    begin, separator, end = letters, letters + 1, letters + 2
    size = int(random.randint(shortest, longest + 1))
    if form == "copy":
        string = random.choice(letters, size).tolist()
        copied = string[:answer] if answer else string
        return [begin, *string, separator, *copied, end], size + 2
    string, grams = _with_ngrams(random, letters, size, ngram, answer)
    gram = grams[int(random.randint(0, len(grams) - 1))]
    rest = string[_find(string, gram) + ngram :]
    copied = rest[:answer] if answer else rest
    if form == "prefix_ngram":
        row = [begin, *gram, separator, *string, separator, *copied, end]
    else:
        row = [begin, *string, separator, *gram, *copied, end]
    return row, len(row) - len(copied) - 1


def _with_ngrams(
    random: np.random.RandomState, letters: int, size: int, ngram: int, answer: int
) -> tuple[list[int], list[list[int]]]:
    for _ in range(ATTEMPTS):
        string = random.choice(letters, size).tolist()
        grams = [string[at : at + ngram] for at in range(size - ngram - answer - 1)]
        if 1 in Counter(map(tuple, grams)).values():
            return string, grams
    raise ValueError(f"copying: no {ngram}-gram occurs once in {ATTEMPTS} strings of {size} among {letters} letters")


def _find(string: list[int], gram: list[int]) -> int:
    return next(at for at in range(len(string)) if string[at : at + len(gram)] == gram)


def packed_rows(random: np.random.RandomState, count: int, length: int, **settings: Any) -> tuple[Tensor, Tensor]:
    """Training rows (count, length - 1) as published: examples one after the other, and the beginning of one more,
    `length` tokens in all.

    Labels are next tokens, of answers and their ends alone; of the one that is cut off nothing is learnt.
    """
    x = torch.empty(count, length, dtype=torch.int64)
    y = torch.full((count, length), IGNORED)
    for row in range(count):
        at = 0
        while at < length:
            tokens, before = copying_row(random, **settings)
            fits = tokens[: length - at]
            x[row, at : at + len(fits)] = torch.tensor(fits)
            if len(fits) == len(tokens):
                y[row, at + before : at + len(tokens)] = torch.tensor(tokens[before:])
            at += len(fits)
    return x[:, :-1], y[:, 1:]


def padded_rows(random: np.random.RandomState, count: int, length: int, **settings: Any) -> tuple[Tensor, Tensor]:
    """Test rows (count, length - 1): one example each, then padding."""
    x = torch.full((count, length), settings["letters"] + 3)
    y = torch.full((count, length), IGNORED)
    for row in range(count):
        tokens, before = copying_row(random, **settings)
        x[row, : len(tokens)] = torch.tensor(tokens)
        y[row, before : len(tokens)] = torch.tensor(tokens[before:])
    return x[:, :-1], y[:, 1:]


# ------------------------------------------------------------------ the place that a pointer names


def pointer_rows(
    count: int, vocabulary: int, size: int, *, behind: bool = False, seed: int = 0
) -> tuple[list[list[int]], list[int]]:
    """Rows and targets of the published generator, for the seed of Python's own `random`.

    `size` tokens 1 to `vocabulary`, and before them (or behind) so many zeros as the place of the target, from 0.
    """
    random = standard.Random(seed)
    rows, targets = [], []
    for _ in range(count):
        place = random.randint(0, size - 1)
        tokens = [random.choice(range(1, vocabulary + 1)) for _ in range(size)]
        zeros = [0] * place
        rows.append([*tokens, *zeros] if behind else [*zeros, *tokens])
        targets.append(tokens[place])
    return rows, targets
