"""Files that readers of data are given: damaged, cut short, of another kind, with other columns, in another encoding.

Each form of data is written once, whole; a call copies it, spoils one of its files and reads all of it. What comes back
is right where the reader could not know: a digit that became another is a number still.
"""

from __future__ import annotations

import atexit
import gzip
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.campaigns.odd import Call, short, thing
from tests.campaigns.surgery_calls import damage
from tests.sequence import written
from tests.vision.folders import make_folder, write_shard


class Form(NamedTuple):
    """A kind of data: how it is written into an empty folder, and how all of it is read from there."""

    write: Callable[[Path], Any]
    read: Callable[[Any], Any]
    """Of the folder as a string, or of something else that is no data."""


def calls(seed: int) -> Iterator[Call]:
    """Endless; every form in turn."""
    draw = random.Random(seed)
    while True:
        for name in draw.sample(sorted(FORMS), len(FORMS)):
            yield _spoiled(draw, name) if draw.random() < 0.85 else _named(draw, name)


def _spoiled(draw: random.Random, name: str) -> Call:
    folder = _room() / f"{draw.getrandbits(64):x}"
    shutil.copytree(_whole(name), folder)
    file = draw.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    how = draw.choice((*WAYS, *WAYS, "bytes", "bytes", "bytes", "bytes"))

    def run() -> Any:
        try:
            damage(draw, file) if how == "bytes" else WAYS[how](draw, file)
            return FORMS[name].read(str(folder))
        finally:
            shutil.rmtree(folder)

    return Call(
        f"{name}.read({file.relative_to(folder)}: {how})", run, (), (file.name, file.stem, str(folder), folder.name)
    )


def _named(draw: random.Random, name: str) -> Call:
    """Something that names no data."""
    value = draw.choice((thing(draw), "/nowhere", "", "~nobody/x", "a\0b", "x" * 300, "/dev/null", "/proc/self/mem"))
    known = (value, type(value).__name__)
    if isinstance(value, str):
        known = (*known, str(Path(value).expanduser()))
    return Call(f"{name}.read({short(value)})", lambda: FORMS[name].read(value), (), known)


@cache
def _room() -> Path:
    room = Path(tempfile.mkdtemp(prefix="matmix-readers-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return room


@cache
def _whole(name: str) -> Path:
    folder = _room() / f"whole-{name}"
    folder.mkdir()
    FORMS[name].write(folder)
    FORMS[name].read(str(folder))  # whole data are read
    return folder


# ------------------------------------------------------------------ what is done to a file


def _lines(draw: random.Random, file: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    packed = file.suffix == ".gz"
    data = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    data = b"".join(change(data.splitlines(keepends=True) or [b""]))
    file.write_bytes(gzip.compress(data) if packed else data)


def _cell(draw: random.Random, file: Path) -> None:
    """Another word in one place of one line."""
    word = draw.choice((b"", b"x", b"nan", b"inf", b"-1", b"1e999", b"99999999999999999999", b'"', b"\xff", b"\xe2\x98",
                        b"?", b"0x1f", b"2.5", b"\0", b"None", b"1,2"))  # fmt: skip

    def change(lines: list[bytes]) -> list[bytes]:
        place = draw.randrange(len(lines))
        mark = next((mark for mark in (b"\t", b",", b":", b" ") if mark in lines[place]), b",")
        cells = lines[place].split(mark)
        cells[draw.randrange(len(cells))] = word
        lines[place] = mark.join(cells)
        return lines

    _lines(draw, file, change)


def _columns(draw: random.Random, file: Path) -> None:
    """A column more or less, in one line or in all."""

    def change(lines: list[bytes]) -> list[bytes]:
        mark = next((mark for mark in (b"\t", b",", b":", b" ") if mark in lines[0] + lines[-1]), b",")
        chosen = range(len(lines)) if draw.random() < 0.5 else [draw.randrange(len(lines))]
        more = draw.random() < 0.5
        for place in chosen:
            cells = lines[place].rstrip(b"\n").split(mark)
            cells = [*cells, cells[-1]] if more else cells[1:]
            lines[place] = mark.join(cells) + b"\n"
        return lines

    _lines(draw, file, change)


def _rows(draw: random.Random, file: Path) -> None:
    """Lines that are gone, in another order, twice."""

    def change(lines: list[bytes]) -> list[bytes]:
        way = draw.randrange(5)
        if way == 0:
            return lines[1:]
        if way == 1:
            return lines[:1]
        if way == 2:
            return lines[::-1]
        if way == 3:
            return [*lines, *lines]
        return [line for line in lines for line in (line, b"\n")]

    _lines(draw, file, change)


def _encoded(draw: random.Random, file: Path) -> None:
    text = file.read_bytes().decode("latin-1")
    code = draw.choice(("utf-16", "utf-8-sig", "utf-32", "cp500"))
    file.write_bytes(text.encode(code, errors="replace"))


def _of_another_kind(draw: random.Random, file: Path) -> None:
    file.unlink()
    draw.choice((
        lambda: file.mkdir(),
        lambda: file.symlink_to(file.parent / "nothing"),
        lambda: file.symlink_to(file),
        lambda: None,
        lambda: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"),
        lambda: file.write_bytes(gzip.compress(b"x")[:-3]),
    ))()  # fmt: skip


def _arrays(draw: random.Random, file: Path) -> None:
    """Of an archive of arrays: one that is gone, or of another kind, shape or name; of another file: an archive."""
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found) if hasattr(found, "files") else {"": found}
    except Exception:
        arrays = {"a": np.zeros(3)}
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    way = draw.randrange(9)
    if way == 0:
        del arrays[name]
    elif way == 1:
        arrays["other"] = arrays.pop(name)
    else:
        arrays[name] = (
            array[:-1] if array.ndim else array, array[..., None],
            array.ravel()[:1].reshape(()) if array.size else array,
            array.astype(str), array.astype(np.complex64) if array.dtype.kind in "biuf" else array,
            np.full_like(array, np.nan) if array.dtype.kind == "f" else array, np.zeros(0),
        )[way - 2]  # fmt: skip
    if "" in arrays:
        np.save(file.with_suffix(".npy"), arrays[""])
    else:
        np.savez(file, **arrays)
        if file.suffix != ".npz":
            shutil.move(f"{file}.npz", file)


WAYS: dict[str, Callable[[random.Random, Path], None]] = {
    "cell": _cell, "columns": _columns, "rows": _rows, "encoding": _encoded, "kind": _of_another_kind,
    "arrays": _arrays,
}  # fmt: skip


# ------------------------------------------------------------------ images


def _images(path: str, splits: tuple[str, ...] = ()) -> Any:
    from vision.data import class_folders, folders, shards, sources
    from vision.data.images import Images

    for cached in (sources._kind_of_folder, shards.shards_of):
        cached.cache_clear()
    del class_folders, folders
    source = sources.open_source(path, "train", splits)
    if source is None:
        raise ValueError(f"data: {path} has no training images; it must have some")
    images = Images(source, range(len(source)))
    return [images.read(at) for at in range(len(images))]


def _inside(read: Callable[[str], Any], name: str) -> Callable[[Any], Any]:
    """A reader of a file of that name in the folder."""
    return lambda data: read(str(Path(data) / name) if isinstance(data, str) and os.path.isdir(data) else data)


def _npz_of_images(folder: Path) -> None:
    parts = make_folder(folder / "parts", {"train": 2})
    files = sorted(parts.rglob("*.jpg"))
    images = [file.read_bytes() for file in files]
    classes = sorted({file.parent.name for file in files})
    np.savez(
        folder / "set.npz", jpeg_train=np.frombuffer(b"".join(images), np.uint8),
        off_train=np.cumsum([0, *map(len, images)]), y_train=[classes.index(f.parent.name) for f in files],
        classes=np.array(classes),
    )  # fmt: skip
    shutil.rmtree(parts)


def _shards(folder: Path) -> None:
    parts = make_folder(folder / "parts", {"train": 2})
    files = sorted(parts.rglob("*.jpg"))
    write_shard(folder / "train-0.tar", [(f"{n}.jpg", file.read_bytes(), n % 3) for n, file in enumerate(files)])
    shutil.rmtree(parts)


def _pairs(folder: Path) -> None:
    from PIL import Image

    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray((pixels[..., 0] > 99).astype(np.uint8)).save(folder / "masks" / f"{number}.png")


def _read_pairs(data: Any) -> Any:
    from vision.data import masks

    files = masks.pairs(data)["train"]
    return [masks.Pairs(files).read(at) for at in range(len(files))]


# ------------------------------------------------------------------ sequences


def _kept(rows: Iterator[Any]) -> list[Any]:
    from sequence.data.faults import Broken

    return list(islice(Broken("stop").kept(rows), 500))


def _cifar(data: Any) -> Any:
    from sequence.data import cifar

    return [_kept(cifar.read(data, split)) for split in ("train", "test")]


def _listops(data: Any) -> Any:
    from sequence.data import listops_files, release

    return [_kept(listops_files.read(found.file, found.where))
            for found in release.files(data, list(listops_files.NAMES.values()), listops_files.FOLDER)]  # fmt: skip


def _aan(data: Any) -> Any:
    from sequence.data import aan, release

    return [_kept(aan.read(found.file, found.where, tokens="bytes", length=20, quoting=False))
            for found in release.files(data, list(aan.NAMES), aan.FOLDER)]  # fmt: skip


def _reviews(data: Any) -> Any:
    from sequence.data import reviews

    return [_kept(reviews.read(data, split)) for split in ("train", "test")]


def _pathfinder(data: Any) -> Any:
    from sequence.data import pathfinder_release as release

    folder = release.located(data, 16, 6)
    rows = [row for table in release.tables(folder) for row in _kept(release.rows(table))]
    return _kept(release.picture(folder, row, 16) for row in rows)


def _speech(data: Any) -> Any:
    from sequence.data import speech

    sounds = [sound for split in speech.SPLITS for sound in speech.read(data, split, "folders")]
    return _kept(speech.decoded(sound, written.RATE) for sound in sounds)


def _corpus(tokens: str) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        from sequence.data import corpus

        corpus._corpus.cache_clear()
        name = str(Path(data) / "tokenizer.json") if tokens == "json" and isinstance(data, str) else tokens
        return corpus.corpus(data, name)

    return read


def _texts(data: Any) -> Any:
    from sequence.language.data.texts import texts

    found = texts(data)
    return {split: list(islice(read(), 100)) for split, read in found.splits.items()}


def _glue(data: Any) -> Any:
    from sequence.language.data import glue

    return [_kept(glue.read(data, name, part)) for name in ("cola", "stsb") for part in glue.parts(name)]


def _tokenizer(data: Any) -> Any:
    from sequence.language.data.tokenizer import tokenizer

    return tokenizer(data)


# ------------------------------------------------------------------ time series


def _ts(folder: Path) -> None:
    head = "@problemName P\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"
    for part, last in (("TRAIN", 6), ("TEST", 7)):
        rows = [f"{n},1.5,?,2:3,4,{n}.5,{last}:{'ab'[n % 2]}" for n in range(6)]
        (folder / f"P_{part}.ts").write_text(head + "\n".join(rows) + "\n")


def _read_ts(data: Any) -> Any:
    from sequence.series.data.ts_files import load

    return load(data)


def _table(folder: Path) -> None:
    rows = [f"2020-01-01 {hour:02}:00,{hour}.5,{hour * 2},{-hour}" for hour in range(20)]
    (folder / "own.csv").write_text("\n".join(["date,a,b,OT", *rows]) + "\n")


def _read_table(data: Any) -> Any:
    from sequence.series.data.sets import load

    return load(data)


def _m4(folder: Path) -> None:
    for part, length in (("train", 9), ("test", 13)):
        rows = [f"W{n},{','.join(str(n + step) for step in range(length))}" for n in range(6)]
        head = ",".join(f"V{n}" for n in range(length + 1))
        (folder / f"Weekly-{part}.csv").write_text("\n".join([head, *rows]) + "\n")


def _read_m4(data: Any) -> Any:
    from sequence.series.data.m4 import read

    return [read(Path(data) / f"Weekly-{part}.csv") for part in ("train", "test")]


def _load_m4(data: Any) -> Any:
    from sequence.series.data import m4

    known = m4.FREQUENCIES["Weekly"]
    m4.FREQUENCIES["Weekly"] = known._replace(series=6)
    try:
        return m4.load("Weekly", data)
    finally:
        m4.FREQUENCIES["Weekly"] = known


ANOMALIES = ("npz", "txt", "npy", "csv", "ucr")


def _anomalies(form: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        values = np.arange(36.0).reshape(12, 3)
        labels = (np.arange(12) % 5 == 0).astype(float)
        parts = {"train": values, "test": values + 0.5, "test_label": labels}
        if form == "npz":
            np.savez(folder / "one.npz", train=values, test=values + 0.5, label=labels)
        elif form == "ucr":
            text = "\n".join(str(value) for value in values.ravel())
            (folder / "135_UCR_Anomaly_x_12_20_23.txt").write_text(text)
        for part, array in parts.items():
            if form == "npy":
                np.save(folder / f"X_{part}.npy", array)
            elif form == "txt":
                (folder / part).mkdir()
                np.savetxt(folder / part / "machine.txt", array, delimiter=",")
            elif form == "csv":
                table = np.column_stack((np.arange(12), array))
                np.savetxt(folder / f"{part}.csv", table, delimiter=",", header="time,a,b,c", comments="")

    return write


def _read_anomalies(data: Any) -> Any:
    from sequence.series.data.anomalies import load

    return load(data)


@cache
def _forecaster() -> Any:
    import pandas as pd

    from sequence.series.forecaster import Forecaster

    table = pd.DataFrame({"ds": pd.date_range("2020-01-01", periods=60, freq="D"), "y": np.sin(np.arange(60.0))})
    return Forecaster("dlinear", horizon=4, lookback=8, steps=2).fit(table)


def _read_forecaster(data: Any) -> Any:
    from sequence.series.forecaster import Forecaster

    return Forecaster.load(data)


FORMS: dict[str, Form] = {
    "class folders": Form(lambda folder: make_folder(folder, {"train": 2}), _images),
    "images npz": Form(_npz_of_images, _inside(_images, "set.npz")),
    "shards": Form(_shards, _images),
    "masks": Form(_pairs, _read_pairs),
    **{f"cifar {kind}": Form(lambda folder, kind=kind: written.cifar(folder, 3, kind=kind), _cifar)  # type: ignore[misc]
       for kind in ("binary", "pickled", "parquet", "npz")},
    "listops": Form(lambda folder: written.listops(folder, (6, 4, 4)), _listops),
    "aan": Form(lambda folder: written.papers(folder, (6, 4, 4)), _aan),
    "reviews": Form(lambda folder: written.reviews(folder, (6, 4)), _reviews),
    "pathfinder": Form(lambda folder: written.pathfinder(folder, 6), _pathfinder),
    "speech": Form(lambda folder: written.recordings(folder, 12), _speech),
    "corpus bytes": Form(lambda folder: written.text(folder / "a.txt"), _inside(_corpus("bytes"), "a.txt")),
    "corpus characters": Form(lambda folder: written.text(folder / "a.txt"), _inside(_corpus("characters"), "a.txt")),
    "texts": Form(lambda folder: written.text(folder / "a.txt"), _inside(_texts, "a.txt")),
    "glue": Form(lambda folder: written.glue(folder, "cola", "stsb", counts=(6, 4)), _glue),
    "tokenizer": Form(lambda folder: written.tokenizer(folder / "a.json"), _inside(_tokenizer, "a.json")),
    "ts": Form(_ts, _read_ts),
    "table": Form(_table, _inside(_read_table, "own.csv")),
    "m4": Form(_m4, _load_m4),
    **{f"anomalies {form}": Form(_anomalies(form), _read_anomalies) for form in ANOMALIES},
    "forecaster": Form(lambda folder: _forecaster().save(folder / "kept"), _inside(_read_forecaster, "kept")),
}  # fmt: skip
