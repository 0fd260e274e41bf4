"""CIFAR-10 in grey (Krizhevsky 2009): 50,000 and 10,000 pictures of 32 x 32 pixels, from the published formats.

==============================  ===================================================================================
`owner/name`                    a data set of the Hugging Face hub, downloaded once by `datasets`
cifar-10-batches-bin            `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`
cifar-10-batches-py             the same without ending, pickled
a folder of .parquet files      with train and test in their names, as the hub has them
`cifar-10-binary.tar.gz`        either of the first two, packed, with or without .gz
a .npz file                     encoded pictures end to end: `jpeg_train`, `off_train`, `y_train`, and for test
==============================  ===================================================================================

Grey is Pillow's mode L, the luma of ITU-R 601 in 16-bit integers, as torchvision's Grayscale in S4's line of work.
The order is that of the files: batches by number. The hub's files may have another, and then a split by number others.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.data import pictures
from sequence.data.cache import cached, source_key
from sequence.data.faults import UNREADABLE, BadData, Broken, apart, arrays_of, bad, from_the_hub, open_binary, shown
from sequence.data.parallel import progress
from sequence.data.pictures import Pictures

HUB = "uoft-cs/cifar10"
CLASSES = 10
SIDE = 32
PUBLISHED = {"train": 50_000, "test": 10_000}
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
VERSION = 2

Row = tuple[np.ndarray, int]
Raw = tuple[str, int, Any, Any]
"""Where it stands, its number, the picture (an RGB array or encoded bytes) and its label."""


@cache
def prepared(data: str, broken: str, cache: str) -> dict[str, Pictures]:
    """Both published splits in grey."""
    sources = files_of(data)
    key = {"version": VERSION, "data": data, "sources": source_key(*sources), "broken": broken}
    return {split: pictures.read(_entry(data, split, broken, key, cache)) for split in PUBLISHED}


def _entry(data: str, split: str, broken: str, key: dict[str, Any], cache: str) -> Any:
    def make(folder: Path) -> dict[str, Any]:
        faults = Broken(broken)
        with progress(f"reading {split} of {data}", PUBLISHED[split], "pictures") as advance:
            rows = []
            for row in faults.kept(read(data, split)):
                rows.append(row)
                advance(1)
        if not rows:
            raise bad(data, 0, f"{split} has no picture", "at least one")
        images, labels = np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
        pictures.write(folder, [(images, labels)])
        return faults.facts()

    return cached("cifar10", {**key, "split": split}, make, cache)


def grey(rgb: np.ndarray) -> np.ndarray:
    """Pillow's mode L of (..., 3) uint8."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


@checking_arguments()
def read(data: Place, split: str) -> Iterator[Row | BadData]:
    """Grey picture and class of every row of a split, or what is wrong with it."""
    for row in _raw(data, split):
        yield row if isinstance(row, BadData) else _checked(*row)


@checking_arguments()
def files_of(data: Place) -> list[Path]:
    """The files that are read; none where `data` names a data set of the hub."""
    root = Path(data).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        if re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not root.exists() and not Path(root.parts[0]).exists():
            return []
        raise BadData(f"data: there is no {root}; allowed: {_allowed()}")
    for ending, files in _batches(root):
        apart({split: [f for f in files if f.name.removesuffix(ending) in names] for split, names in BATCHES.items()})
        return files
    found = sorted(root.rglob("*.parquet")) or sorted(root.glob("*.npz")) or sorted(root.glob("cifar-10-*.tar*"))
    if not found:
        raise BadData(f"data: {root} holds no CIFAR-10; allowed: {_allowed()}")
    if found[0].suffix != ".parquet" and len(found) > 1:
        raise BadData(f"data: {root} holds {found[0].name} and {found[1].name}; allowed: one of them, named itself")
    if found[0].suffix == ".parquet":
        apart({split: _of_split(found, split) for split in PUBLISHED})
    return found


def _raw(data: str, split: str) -> Iterator[Raw | BadData]:
    root, files = Path(data).expanduser(), files_of(data)
    if not files:
        yield from _hub(data, split)
        return
    if root.is_dir():
        for ending, batches in _batches(root):
            for file in batches:
                if file.name.removesuffix(ending) in BATCHES[split]:
                    yield from _batch(str(file), file.read_bytes(), pickled=not ending)
            return
    if files[0].suffix == ".parquet":
        yield from _parquet(root, files, split)
    elif files[0].suffix == ".npz":
        yield from _arrays(files[0], split)
    else:
        yield from _packed(files[0], split)


def _batches(root: Path) -> Iterator[tuple[str, list[Path]]]:
    """Ending and files, where a folder has the published batches; some of them missing is an error."""
    for place in (root / folder for folder in FOLDERS):
        for ending in (".bin", ""):
            files = [place / f"{name}{ending}" for names in BATCHES.values() for name in names]
            missing = [file for file in files if not file.is_file()]
            if missing == files:
                continue
            if missing:
                raise BadData(
                    f"data: {place} has no {', '.join(file.name for file in missing)}; allowed: all six files"
                )
            yield ending, files
            return


def _batch(where: str, data: bytes, *, pickled: bool) -> Iterator[Raw | BadData]:
    """The rows of one published file: a byte for the label, then red, green and blue."""
    if pickled:
        rows, labels = _unpickled(where, data)
    else:
        size = 1 + 3 * SIDE**2
        if len(data) % size or not data:
            raise bad(where, len(data) // size + 1, f"{len(data):,} bytes", f"a multiple of {size}")
        table = np.frombuffer(data, np.uint8).reshape(-1, size)
        rows, labels = table[:, 1:], table[:, 0].tolist()
    colours = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    for number, (image, label) in enumerate(zip(colours, labels, strict=True), 1):
        yield where, number, image, label


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain values, and nothing that could run: a pickle may otherwise name any function."""

    allowed = (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"))
    rebuild = ("numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> Any:
        if module in self.rebuild and name == "_reconstruct":
            return np.ndarray(0).__reduce__()[0]
        if (module, name) in self.allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickled(where: str, data: bytes) -> tuple[np.ndarray, list[int]]:
    try:
        found = _Arrays(io.BytesIO(data), encoding="bytes").load()
        named = {name.decode() if isinstance(name, bytes) else name: value for name, value in found.items()}
        rows, labels = np.asarray(named["data"]), list(named["labels"])
    except Exception as error:  # pickles raise what they like
        raise bad(
            where, 0, f"{type(error).__name__}: {error}", "a pickled dictionary with data and labels; get it again"
        ) from error
    if rows.dtype != np.uint8 or rows.shape != (len(labels), 3 * SIDE**2):
        what = f"data are {rows.dtype} {rows.shape} for {len(labels)} labels"
        raise bad(where, 0, what, f"uint8 (labels, {3 * SIDE**2})")
    return rows, labels


def _packed(path: Path, split: str) -> Iterator[Raw | BadData]:
    """The batches in a tar archive, in their order."""
    found: dict[str, tuple[str, bytes]] = {}
    try:
        with open_binary(path) as opened, tarfile.open(fileobj=opened, mode="r|") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name.removesuffix(".bin") in BATCHES[split]:
                    file = tar.extractfile(member)
                    assert file is not None
                    found[name.removesuffix(".bin")] = name, file.read()
    except UNREADABLE as error:
        raise bad(path, 0, f"it cannot be read: {error}", "a whole tar archive; get it again") from error
    missing = [name for name in BATCHES[split] if name not in found]
    if missing:
        raise bad(path, 0, f"it has no {', '.join(missing)}", "cifar-10-binary.tar.gz or cifar-10-python.tar.gz")
    for name in BATCHES[split]:
        member_name, data = found[name]
        yield from _batch(f"{path}:{member_name}", data, pickled=not member_name.endswith(".bin"))


def _parquet(root: Path, files: list[Path], split: str) -> Iterator[Raw | BadData]:
    from pyarrow import ArrowException, parquet

    mine = _of_split(files, split)
    if not mine:
        raise BadData(f"data: {root} has no file of the split {split}; allowed: {_allowed()}")
    for file in mine:
        number = 0
        try:
            opened = parquet.ParquetFile(file)
            column = _column(str(file), opened.schema_arrow.names)
            for batch in opened.iter_batches(batch_size=1000, columns=[column, "label"]):
                for row in batch.to_pylist():
                    number += 1
                    yield str(file), number, (row[column] or {}).get("bytes"), row["label"]
        except (ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise bad(file, number + 1, f"it cannot be read on: {reason}", "a whole parquet file") from error


def _of_split(files: list[Path], split: str) -> list[Path]:
    return [file for file in files if split in re.split(r"[\W_]+", file.name.lower())]


def _column(where: str, names: list[str]) -> str:
    found = next((name for name in ("img", "image") if name in names), None)
    if found is None or "label" not in names:
        raise bad(where, 0, f"the columns are {shown(', '.join(names))}", "img and label")
    return found


def _hub(name: str, split: str) -> Iterator[Raw | BadData]:
    import datasets

    with from_the_hub(name, _allowed()):
        rows = datasets.load_dataset(name, split=split)
        column = _column(name, rows.column_names)
        rows = rows.cast_column(column, datasets.Image(decode=False))
    for number, row in enumerate(rows, 1):
        yield f"{name} {split}", number, row[column]["bytes"], row["label"]


def _arrays(path: Path, split: str) -> Iterator[Raw | BadData]:
    wanted = [f"{part}_{split}" for part in ("jpeg", "off", "y")]
    arrays = arrays_of(path)
    found = [arrays[name] for name in wanted if name in arrays]
    if len(found) < len(wanted):
        raise bad(path, 0, f"it has not all arrays of {split}", f"the arrays {', '.join(wanted)}")
    data, starts, labels = found
    for name, array, kinds in zip(wanted, found, ("u", "iu", "iu"), strict=True):
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise bad(path, 0, f"{name} is {array.dtype} of shape {array.shape}", "a row of whole numbers")
    if len(starts) != len(labels) + 1 or (np.diff(starts) < 0).any() or starts[0] or starts[-1] != len(data):
        rising = f"{len(labels) + 1} numbers that rise, from 0 to {len(data)}"
        raise bad(path, 0, f"off_{split} does not divide the bytes", rising)
    for number, label in enumerate(labels.tolist(), 1):
        yield str(path), number, data[starts[number - 1] : starts[number]].tobytes(), label


def _checked(where: str, number: int, image: Any, label: Any) -> Row | BadData:
    if label not in range(CLASSES):
        return bad(where, number, f"label {shown(label)}", "0 to 9")
    if isinstance(image, bytes):
        from PIL import Image

        try:
            with Image.open(io.BytesIO(image)) as opened:
                image = np.asarray(opened.convert("RGB"))
        except Exception as error:  # decoders raise what they like
            return bad(where, number, f"{type(error).__name__}: {error}", "an encoded picture")
    if not isinstance(image, np.ndarray) or image.shape != (SIDE, SIDE, 3):
        what = f"a picture of {image.shape[1]} x {image.shape[0]}" if isinstance(image, np.ndarray) else "no picture"
        return bad(where, number, what, f"{SIDE} x {SIDE} pixels")
    return grey(image), int(label)


def _allowed() -> str:
    return (
        f"{HUB} or another data set of the hub, a folder with {FOLDERS[1]}, {FOLDERS[2]} or .parquet files, "
        "cifar-10-binary.tar.gz, cifar-10-python.tar.gz, or a .npz file"
    )
