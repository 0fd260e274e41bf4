"""Where images come from. A source is one of timm's readers: `reader[i]` is an open file and the number of a class.

========================  =========================================================================================
a folder                  `train`, `val` and `test` below it, each with a folder a class; or the classes themselves
a folder of .tar files    WebDataset shards: images with a `.cls` or `.json` (`{"label": 3}`) of the same name, in
                          folders as above or with the split in their name (`imagenet1k-train-0001.tar`)
a .npz file               JPEG bytes end to end: `jpeg_train`, offsets `off_train`, labels `y_train`, and `classes`
an `owner/name`           data set of the Hugging Face hub, downloaded once by `datasets`
========================  =========================================================================================

Every source has random access, so the order of training can depend on the seed and the step alone. That is why shards
are read by an index (made once, from the tar headers) and not as streams, which timm's loader shuffles by what happens
to be in its buffer.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_factory import create_reader

from matmix.experiments.task import Split

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Source(Reader):
    """One of timm's readers that also says its classes, by number, and the label of every image, in order."""

    class_to_idx: dict[str, int]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def labels(self) -> list[int]:
        raise NotImplementedError


def open_source(data: str, split: Split) -> Source | None:
    """The images of a split; None where the data set has no such split.

    Raises:
        ValueError: for data that are not there, a class without images, or classes that `train` does not have.
    """
    path = Path(data).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return JpegArrays.open(path, split)
    if path.is_dir():
        if any(path.glob("*.tar")) or any(path.glob("*/*.tar")):
            shards = _shards(path, split)
            return TarShards(shards) if shards else None
        folder = _folder(path, split)
        if folder is None:
            return None
        train = _folder(path, "train")
        return FolderClasses(folder, None if train is None or split == "train" else class_folders(train))
    if path.suffix or path.is_absolute() or not re.fullmatch(r"[\w.\-]+/[\w.\-]+", data):
        raise ValueError(f"data: there is no folder, .npz file or Hugging Face data set (owner/name) {data!r}")
    return _hub(data, split)


def class_folders(folder: Path) -> dict[str, list[str]]:
    """The image files of every class of a split, in order: the class is the folder right below the split.

    timm's own reader takes the folder right above the file, and leaves out a class without images; here files may lie
    deeper, and an empty class is an error, not one class less.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"data: {folder} has no folders of classes")
    kinds = tuple(get_img_extensions())
    found = {}
    for name in names:
        walk = os.walk(folder / name, followlinks=True)
        found[name] = sorted(
            os.path.join(where, file)
            for where, _, files in walk
            for file in files
            if file.lower().endswith(kinds) and not file.startswith(".")
        )
        if not found[name]:
            raise ValueError(f"data: the class folder {folder / name} holds no image ({', '.join(kinds)})")
    return found


class FolderClasses(Source):
    """The images of a split, with the class numbers of the training split."""

    def __init__(self, folder: Path, classes: Iterable[str] | None = None) -> None:
        found = class_folders(folder)
        self.class_to_idx = {name: index for index, name in enumerate(classes or found)}
        for name in found:
            if name not in self.class_to_idx:
                raise ValueError(f"data: {folder / name} is a class that the training split does not have")
        self.samples = [(path, self.class_to_idx[name]) for name, paths in found.items() for path in paths]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, target = self.samples[index]
        return open(path, "rb"), target

    def __len__(self) -> int:
        return len(self.samples)

    def labels(self) -> list[int]:
        return [target for _, target in self.samples]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.samples[index][0]


class JpegArrays(Source):
    """Encoded images in one array of bytes: image i is `data[offsets[i] : offsets[i + 1]]`."""

    def __init__(
        self, name: str, data: np.ndarray, offsets: np.ndarray, labels: np.ndarray, classes: list[str]
    ) -> None:
        self.name, self.data, self.offsets = name, data, offsets
        self.targets = [int(label) for label in labels]
        self.class_to_idx = {label: index for index, label in enumerate(classes)}

    @classmethod
    def open(cls, path: Path, split: Split) -> JpegArrays | None:
        with np.load(path, allow_pickle=False) as arrays:
            wanted = [f"{part}_{split}" for part in ("jpeg", "off", "y")]
            if not any(name in arrays for name in wanted):
                return None
            missing = [name for name in (*wanted, "classes") if name not in arrays]
            if missing:
                raise ValueError(f"data: {path} has no array {', '.join(missing)}")
            data, offsets, labels = (arrays[name] for name in wanted)
            return cls(f"{path}:{split}", data, offsets, labels, [str(name) for name in arrays["classes"]])

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return io.BytesIO(self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)

    def labels(self) -> list[int]:
        return self.targets

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self.name}[{index}]"


class TarShards(Source):
    """WebDataset shards with random access: an entry is (shard, offset, size, name, label)."""

    def __init__(self, shards: Sequence[Path]) -> None:
        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(_index, shards))
        self.shards = [str(shard) for shard in shards]
        self.entries = [(number, *entry) for number, part in enumerate(parts) for entry in part]
        classes = max(label for *_, label in self.entries) + 1
        self.class_to_idx = {str(index): index for index in range(classes)}

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        shard, offset, size, _, label = self.entries[index]
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def __len__(self) -> int:
        return len(self.entries)

    def labels(self) -> list[int]:
        return [label for *_, label in self.entries]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        shard, _, _, name, _ = self.entries[index]
        return f"{self.shards[shard]}:{name}"


def _index(shard: Path) -> list[tuple[int, int, str, int]]:
    """Offset, size, name and label of every image of a shard, in its order."""
    kinds = get_img_extensions(as_set=True)
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                folder, slash, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                key = f"{folder}{slash}{stem}"
                if f".{ending.lower()}" in kinds:
                    images[key] = (member.offset_data, member.size, member.name)
                elif ending in ("cls", "json"):
                    text = tar.extractfile(member).read()  # type: ignore[union-attr]
                    labels[key] = int(text if ending == "cls" else json.loads(text)["label"])
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data: the shard {shard} cannot be read: {type(error).__name__}: {error}") from error
    missing = [name for key, (_, _, name) in images.items() if key not in labels]
    if missing or not images:
        what = f"{missing[0]} has no .cls or .json with a label" if missing else "no image in it"
        raise ValueError(f"data: the shard {shard}: {what}")
    return [(*image, labels[key]) for key, image in images.items()]


class HubImages(Source):
    """A data set of the hub: timm's reader, with all labels at once."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.class_to_idx = inner, inner.class_to_idx
        self.targets = [int(label) for label in inner.dataset[inner.label_key]]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)

    def labels(self) -> list[int]:
        return self.targets

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.inner.filename(index) or f"image {index}"


@cache
def _hub(name: str, split: Split) -> Source | None:
    """Hugging Face data set; its splits are asked for by their usual names, its image column is found by its kind."""
    import datasets

    try:
        names = datasets.get_dataset_split_names(name)
        found = next((known for known in NAMES[split] if known in names), None)
        if found is None:
            return None
        features = datasets.load_dataset_builder(name).info.features or {}
        image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), "image")
        label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), "label")
        return HubImages(create_reader(f"hfds/{name}", None, split=found, input_key=image, target_key=label))
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(f"data: the hub data set {name!r} cannot be opened: {type(error).__name__}: {text}") from error


def _folder(path: Path, split: Split) -> Path | None:
    found = next((path / name for name in NAMES[split] if (path / name).is_dir()), None)
    if found is None and split == "train" and not any(_folder(path, other) for other in ("val", "test")):
        return path  # the classes stand there, undivided
    return found


def _shards(path: Path, split: Split) -> list[Path]:
    folder = _folder(path, split)
    if folder not in (None, path):
        return sorted(folder.glob("*.tar"))
    named = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(NAMES[split])})(?:[^a-z]|$)")
    return sorted(shard for shard in path.glob("*.tar") if named.search(shard.stem.lower()))
