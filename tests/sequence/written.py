"""Small data sets in the published formats, written by the tests."""

from __future__ import annotations

import csv
import functools
import gzip
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from sequence.data import pathfinder as paths
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


_drawn = functools.cache(paths.draw)


def pathfinder(folder: Path, count: int = 60, size: int = 16, *, strangers: bool = False) -> Path:
    """`pathfinder<size>` as released: pictures of png, tables of text called .npy, two of them; with `strangers` the
    labels are those of other pictures."""
    from PIL import Image

    level = folder / f"pathfinder{size}" / "curv_baseline"
    (level / "metadata").mkdir(parents=True)
    found = _drawn(paths.published(size, 6), seed=1, indices=range(count))
    labels = _drawn(paths.published(16), seed=2, indices=range(count)).labels if strangers else found.labels
    for table in (0, 10):
        (level / "imgs" / str(table)).mkdir(parents=True)
        lines = []
        for number, index in enumerate(range(table // 10, count, 2)):
            name = f"sample_{number}.png"
            Image.fromarray(found.images[index]).save(level / "imgs" / str(table) / name)
            lines.append(f"imgs/{table} {name} {number} {labels[index]} 1.0 6 2 2 0.5 1 1\n")
        (level / "metadata" / f"{table}.npy").write_text("".join(lines))
    return folder


def cifar(folder: Path, count: int = 8, *, kind: str = "binary") -> Path:
    """Six files of `count` pictures in a published format: one byte for the label, then red, green and blue. The class
    is how bright a picture is."""
    import io
    import pickle

    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    splits: dict[str, list] = {"train": [], "test": []}
    for name in names:
        labels = source.integers(0, 10, count)
        rows = (25 * labels[:, None] + source.integers(0, 10, (count, 3072))).astype(np.uint8)
        splits["test" if name == "test_batch" else "train"].append((rows, labels))
        if kind == "binary":
            data = np.concatenate([labels[:, None].astype(np.uint8), rows], 1).tobytes()
            (folder / f"{name}.bin").write_bytes(data)
        elif kind == "pickled":
            found = {b"data": rows, b"labels": labels.tolist(), b"batch_label": name.encode()}
            (folder / name).write_bytes(pickle.dumps(found, protocol=2))
    if kind in ("parquet", "npz"):
        arrays: dict[str, np.ndarray] = {}
        for split, batches in splits.items():
            images = []
            for row in np.concatenate([rows for rows, _ in batches]):
                buffer = io.BytesIO()
                Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, "png")
                images.append(buffer.getvalue())
            labels = np.concatenate([labels for _, labels in batches])
            if kind == "parquet":
                import pyarrow
                from pyarrow import parquet

                column = pyarrow.array([{"bytes": image, "path": None} for image in images])
                table = pyarrow.table({"img": column, "label": labels})
                parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
            arrays[f"jpeg_{split}"] = np.frombuffer(b"".join(images), np.uint8)
            arrays[f"off_{split}"] = np.cumsum([0, *map(len, images)])
            arrays[f"y_{split}"] = labels
        if kind == "npz":
            np.savez(folder / "cifar10.npz", **arrays)
    return folder


def pack(archive: Path, files: Iterable[Path], inside: str) -> Path:
    """A packed release that holds these files in the folder `inside`, in this order."""
    with tarfile.open(archive, "w:gz") as tar:
        for file in files:
            tar.add(file, f"lra_release/lra_release/{inside}/{file.name}")
    return archive


def edit(file: Path, line: int, change: Callable[[bytes], bytes]) -> None:
    """Change a line (from 1), of a file that may be packed."""
    packed = file.suffix == ".gz"
    lines = (gzip.decompress(file.read_bytes()) if packed else file.read_bytes()).splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    content = b"".join(lines)
    file.write_bytes(gzip.compress(content) if packed else content)


WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "and", "then", "it", "slept")


def sentences(count: int, seed: int = 0, words: tuple[int, int] = (3, 12)) -> list[str]:
    """Texts of a few words each."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(*words))) for _ in range(count)]


def tokenizer(path: Path, vocabulary: int = 80) -> Path:
    """A tokenizer.json of these words."""
    from sequence.language.data.tokenizer import train_wordpiece

    train_wordpiece(sentences(60), vocabulary).save(str(path))
    return path


def glue(folder: Path, *names: str, counts: tuple[int, int] = (48, 12)) -> Path:
    """Tasks of GLUE as released: a header, tabs, quotes as letters; CoLA without a header."""
    from sequence.language.data.glue import COLA, TASKS, parts

    for name in names:
        task = TASKS[name]
        (folder / task.folder).mkdir(parents=True, exist_ok=True)
        for part in parts(name):
            count = counts[part != "train"]
            first = 10 * parts(name).index(part)
            texts = [[f'{text} "' for text in sentences(count, first + at)] for at in range(len(task.texts))]
            columns = COLA if name == "cola" else ("index", *task.texts, task.label)
            lines = [] if name == "cola" else ["\t".join(columns)]
            for row in range(count):
                label = task.labels[row % len(task.labels)] if task.labels else str(row % 6 * 0.9)
                cells = dict(zip(task.texts, (column[row] for column in texts), strict=True)) | {task.label: label}
                lines.append("\t".join(cells.get(column, "7") for column in columns))
            kind = {"train": "train", "dev": "dev_matched" if name == "mnli" else "dev"}.get(part, "dev_mismatched")
            (folder / task.folder / f"{kind}.tsv").write_text("\n".join(lines) + "\n")
    return folder


RATE, LENGTH, SPOKEN = 1000, 320, ("high", "low")
"""Samples a second and of the longest recording, and what is said in `recordings`."""


def recording(number: int) -> tuple[str, np.ndarray]:
    """Word and wave of a recording; every third is shorter. All tones are below a quarter of the rate."""
    source = np.random.default_rng(number)
    word = SPOKEN[number % 2]
    times = np.arange(LENGTH - (60 if number % 3 == 0 else 0)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * (({"high": 180, "low": 40}[word] + source.normal()) * times + source.random()))
    return word, wave + 0.01 * source.normal(size=len(times))


def recordings(folder: Path, count: int = 48) -> Path:
    """Folders of words with both lists: every fourth recording for validation, every fourth for the test."""
    import soundfile

    from sequence.data.speech import LISTS as SPLITS

    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number in range(count):
        word, wave = recording(number)
        file = folder / word / f"{number:04}_nohash_0.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, wave, RATE, subtype="PCM_16")
        if number % 8 in (2, 3, 6, 7):
            lists["val" if number % 8 < 4 else "test"].append(f"{word}/{file.name}\n")
    for split, names in lists.items():
        (folder / SPLITS[split]).write_text("".join(names))
    (folder / "_background_noise_").mkdir()
    return folder
