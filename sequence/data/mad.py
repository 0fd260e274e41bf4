"""The six tasks of MAD (Poli et al. 2024, arXiv 2403.17844), row by row as its code draws them.

One numpy generator makes all training rows, then all test rows; selective copying draws the places of its blanks from
numpy's legacy generator as well, which starts from the same seed. Rows that we add for validation come after both, so
training and test rows stay the published ones.

Inputs and labels have one length L; -100 marks what is not scored. Where training differs from the test, it predicts
the next token everywhere, keys and noise included, while the test scores values that can be known.

Left out: MAD reads its rows by several workers that start from copies of one generator, so that some rows come more
than once in the data sets its command makes; here no row is a copy of another worker's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from matmix.ranges import Chance, Count, Whole
from matmix.settings import Settings
from sequence.data.labels import IGNORED

SEED = 12345
Row = tuple[list[int], list[int]]


class Streams:
    """The generators of one data set."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = np.random.default_rng(seed)
        self.legacy = np.random.RandomState(seed)


@dataclasses.dataclass(frozen=True)
class MadSettings(Settings):
    """One setting of one task; a factor that a task does not have is not read by it."""

    vocabulary: Count = 16
    length: Count = 128
    noise: Chance = 0.0
    """Share of the slots that hold noise."""
    noise_vocabulary: Whole = 0
    copied: Count = 16
    """Tokens to copy."""
    motif: Count = 3
    """Longest key and longest value of fuzzy recall, in tokens."""
    multi_query: bool = True
    """Recall: score every key that comes again, not the last one alone; False has a marker before the last one."""

    def check(self, kind: str) -> None:
        """Refuse what no row of the kind can be made of."""
        name = f"mad, {kind}"
        if self.length < 4 or (kind in ("recall", "noisy_recall", "memorization") and self.length % 2):
            raise ValueError(f"{name}: length must be even and at least 4, got {self.length}")
        if self.noise and self.noise_vocabulary < 1:
            raise ValueError(f"{name}: noise={self.noise} needs tokens, got noise_vocabulary={self.noise_vocabulary}")
        special = {"selective_copying": 2, "compression": 1, "memorization": 1, "fuzzy_recall": 1}.get(kind, 0)
        left, least = self.vocabulary - special - self.noise_vocabulary, 2
        if kind == "fuzzy_recall":
            least = 2 * self.motif
            if self.length <= 4 * self.motif:
                raise ValueError(f"{name}: motif must be from 1 to below length/4, got {self.motif} of {self.length}")
        if left < least:
            raise ValueError(
                f"{name}: vocabulary={self.vocabulary} leaves {left} tokens for keys and values, {least} are needed"
            )
        if kind == "selective_copying" and self.copied >= self.length / 2 - 0.5:
            raise ValueError(f"{name}: copied must be from 1 to below (length - 1) / 2, got {self.copied}")


# ------------------------------------------------------------------ recall


def in_context_recall(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """key value key value ...: the value of a key is the same all along the row; noise is two tokens of their own."""
    random, multi = streams.random, settings.multi_query
    tokens = settings.vocabulary - settings.noise_vocabulary - (not multi)
    half = tokens // 2
    pairs = settings.length // 2
    spared = random.integers(pairs)  # never noise; it may be the place of the last pair, which is drawn apart
    known: dict[int, int] = {}
    x, y = [], []
    for slot in range(pairs - 1):
        if settings.noise and slot != spared and random.random() < settings.noise:
            x += (tokens + random.integers(settings.noise_vocabulary, size=2)).tolist()
            y += [IGNORED, IGNORED]
            continue
        key = int(random.integers(half))
        again = key in known
        if not again:
            known[key] = half + int(random.integers(tokens - half))
        x += [key, known[key]]
        y += [IGNORED, known[key] if again and multi else IGNORED]
    if not known:
        raise ValueError(f"a row of noise alone, with noise={settings.noise} and length={settings.length}")
    key = list(known)[random.integers(len(known))]
    x += [key, known[key]] if multi else [settings.vocabulary - 1, key, known[key]]
    y += [IGNORED] * (1 if multi else 2) + [known[key]]
    return x[:-1], (x if train else y)[1:]


def fuzzy_in_context_recall(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """Keys and values of one to `motif` different tokens; one pair is chosen beforehand and asked at the end.

    The chosen pair is put at a place that the row may never reach, so that the last question cannot be answered from
    the row: 2.8 % of the rows at the published size. A reader without fault stays a little below 1.
    """
    random, multi, longest = streams.random, settings.multi_query, settings.motif
    padding = settings.vocabulary - (1 if multi else 2)  # the last token marks the question, where there is one
    tokens = padding - settings.noise_vocabulary
    half = tokens // 2
    keys = {n: Motifs(range(half), n, random) for n in (range(1, longest + 1) if train else [longest])}
    values = {n: Motifs(range(half, tokens), n, random) for n in range(1, longest + 1)}

    def sizes() -> tuple[int, int]:
        """Of a key, which is the longest in a test, and of a value."""
        key = 1 + int(random.integers(longest)) if train else longest
        return key, 1 + int(random.integers(longest))

    key_size, value_size = sizes()
    asked, answer = keys[key_size].draw(), values[value_size].draw()
    asking = key_size + value_size
    place = random.integers(settings.length - 2 * asking)
    known = {asked: answer}
    shown: set[tuple[int, ...]] = set()
    x: list[int] = []
    y: list[int] = []
    while len(x) < settings.length - asking - 2 * longest:
        key_size, value_size = sizes()
        if len(x) >= place and asked not in shown:
            key = asked
        elif settings.noise and random.random() < settings.noise:
            x += (tokens + random.integers(settings.noise_vocabulary, size=key_size + value_size)).tolist()
            y += [IGNORED] * (key_size + value_size)
            continue
        else:
            key = keys[key_size].draw()
        if key not in known:
            known[key] = values[value_size].draw()
        value = known[key]
        x += [*key, *value]
        y += [IGNORED] * len(key) + (list(value) if multi and key in shown else [IGNORED] * len(value))
        shown.add(key)
    x += [*([] if multi else [settings.vocabulary - 1]), *asked, *answer]
    y += [IGNORED] * (len(x) - len(y) - len(answer)) + [*answer]
    missing = settings.length + 1 - len(x)
    x, y = [padding] * missing + x, [IGNORED] * missing + y
    return x[:-1], (x if train else y)[1:]


class Motifs:
    """All ordered choices of n different tokens, in a random order that is drawn anew for every row."""

    def __init__(self, tokens: range, n: int, random: np.random.Generator) -> None:
        self.table, self.random = all_motifs(tokens, n), random
        self.order = np.arange(len(self.table))
        random.shuffle(self.order)

    def draw(self) -> tuple[int, ...]:
        return self.table[self.order[self.random.integers(len(self.order))]]


@cache
def all_motifs(tokens: range, n: int) -> list[tuple[int, ...]]:
    return list(permutations(tokens, n))


# ------------------------------------------------------------------ copying


def selective_copying(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """Tokens with blanks among them, a marker, and as many blanks again, where the tokens are to be repeated."""
    return _copying(settings, streams, scattered=True)


def copying(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """The same with all blanks behind the tokens: a fixed delay. MAD's code has it, its benchmark does not."""
    return _copying(settings, streams, scattered=False)


def _copying(settings: MadSettings, streams: Streams, *, scattered: bool) -> Row:
    blank, marker = settings.vocabulary - 2, settings.vocabulary - 1
    blanks = settings.length - 2 * settings.copied - 1
    tokens = streams.random.integers(blank, size=settings.copied)
    # Each number names the token before which a blank goes; none follows the last one.
    places = streams.legacy.randint(0, settings.copied, blanks) if scattered else np.full(blanks, settings.copied)
    x = [*np.insert(tokens, places, blank).tolist(), marker] + [blank] * settings.copied
    return x, [IGNORED] * (settings.length - settings.copied) + tokens.tolist()


# ------------------------------------------------------------------ compression and memory


def compression(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """Random tokens and a marker, at which all of them are to be read out; the marker counts as well."""
    last = settings.vocabulary - 1
    x = [*streams.random.integers(last, size=settings.length - 1).tolist(), last]
    return x, list(x)


def memorization(settings: MadSettings, streams: Streams, train: bool) -> Row:
    """key ? key ? ...: the value of a key is the same in all rows of both splits, and stands in none of them."""
    table = memory(settings.vocabulary, streams.seed)
    streams.random.integers(settings.length // 2)  # a slot spared from noise, which this task has none of
    chosen = streams.random.integers(len(table), size=settings.length // 2)
    x = [token for index in chosen for token in (table[index][0], settings.vocabulary - 1)]
    return x, [label for index in chosen for label in (IGNORED, table[index][1])]


@cache
def memory(vocabulary: int, seed: int) -> list[tuple[int, int]]:
    """Keys with their values, from a generator of its own. The last token asks and is neither."""
    half = (vocabulary - 1) // 2
    random = np.random.default_rng(seed)
    keys, values = np.arange(half), np.arange(half, vocabulary - 1)
    random.shuffle(keys)
    random.shuffle(values)
    return list(zip(keys.tolist(), values.tolist(), strict=False))  # one value may be left over


# ------------------------------------------------------------------ data sets

RowGenerator = Callable[[MadSettings, Streams, bool], Row]
KINDS: dict[str, RowGenerator] = {
    "recall": in_context_recall,
    "fuzzy_recall": fuzzy_in_context_recall,
    "noisy_recall": in_context_recall,
    "selective_copying": selective_copying,
    "memorization": memorization,
    "compression": compression,
}


@cache
def mad(
    row: RowGenerator, settings: MadSettings, train: int, test: int, val: int = 0, *, seed: int = SEED
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and labels (n, L), int64, of "train", "test" and "val": the published rows for the published seed 12345.
    A split of no rows is left out.

    Rows for validation follow those of the test, by its rules.
    """
    streams = Streams(seed)
    found = {}
    for split, count in (("train", train), ("test", test), ("val", val)):
        rows = [row(settings, streams, split == "train") for _ in range(count)]
        if rows:
            x, y = (torch.from_numpy(np.array(part, dtype=np.int64)) for part in zip(*rows, strict=True))
            found[split] = (x, y)
    return found
