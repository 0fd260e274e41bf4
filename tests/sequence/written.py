"""Small data sets in the published formats, written by the tests."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

from sequence.data.listops import TOKENS, Shape, draw

LISTS = Shape(max_depth=3, max_args=4, min_length=3, max_length=24)


def listops(folder: Path, counts: tuple[int, int, int] = (64, 16, 16), *, quoted: bool = False) -> Path:
    """`basic_*.tsv` as released: parentheses, ] for X, a header; quoted or not."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = draw(LISTS, sum(counts), seed=3)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        with open(folder / f"basic_{split}.tsv", "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
            writer.writerow(["Source", "Target"])
            for _ in range(count):
                tree, label = next(rows)
                words = ("]" if TOKENS[token] == "X" else TOKENS[token] for token in tree)
                writer.writerow([" ".join(f"( {word} )" if word.isdigit() else word for word in words), label])
    return folder


def reviews(folder: Path, counts: tuple[int, int] = (80, 20)) -> Path:
    """`imdb_{train,test}.csv.gz`, columns id, label, rating, text; a word says the class."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(0)
    for split, count in zip(("train", "test"), counts, strict=True):
        with gzip.open(folder / f"imdb_{split}.csv.gz", "wt", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "label", "rating", "text"])
            for number in range(count):
                words = ["a", "film,", '"so"', "long"] * source.randint(1, 3) + [("bad", "good")[number % 2]]
                source.shuffle(words)
                writer.writerow([number, number % 2, 5, " ".join([*words, str(number)])])
    return folder


def papers(folder: Path, counts: tuple[int, int, int] = (64, 16, 16)) -> Path:
    """`new_aan_pairs.*.tsv`: label, two ids, two texts; papers on one subject cite each other."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(0)
    words = ("parse", 'é"tree"')
    texts = [f"{words[number % 2]} " * source.randint(1, 4) + str(number) for number in range(12)]
    for part, count in zip(("train", "eval", "test"), counts, strict=True):
        with open(folder / f"new_aan_pairs.{part}.tsv", "w") as file:
            for number in range(count):
                a = source.randrange(12)
                b = (a + 2 * source.randrange(6) + number % 2) % 12
                file.write(f"{float(number % 2 == 0)}\tP{a}\tP{b}\t{texts[a]}\t{texts[b]}\n")
    return folder


def text(file: Path) -> Path:
    """A text of some 2,000 bytes that comes again and again."""
    file.write_text("Where the bee sucks, there suck I: €5 a day.\nIn a cowslip's bell I lie.\n" * 30, encoding="utf-8")
    return file
