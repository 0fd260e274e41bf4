"""Where images come from. A source is one of timm's readers: `reader[i]` is an open file and the number of a class.

========================  =========================================================================================
a folder                  a split in each of its folders (`train`, `Valid`, `test_set`, see `vision.data.folders`), with
                          a folder a class in each; or the classes themselves
a folder of .tar files    WebDataset shards: images with a `.cls` or `.json` (`{"label": 3}`) of the same name, in
                          folders as above or with the split in their name (`imagenet1k-train-0001.tar`)
a .npz file               JPEG bytes end to end: `jpeg_train`, offsets `off_train`, labels `y_train`, and `classes`
an `owner/name`           data set of the Hugging Face hub, downloaded once by `datasets`
========================  =========================================================================================

`folder:`, `shards:` or `hf:` in front says which of them is meant where that is open. A path whose first folder is
there, or has nearly its name, is taken for one that is mistyped, and no hub is asked.

Images are files of any format that Pillow decodes, by their ending in any case; what else lies there is left out, and
counted in `matmix train`'s first lines. As in timm and torchvision they are taken as stored: an orientation in EXIF
does not turn them, and of files with several frames the first counts.

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
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from timm.data.readers.reader import Reader
from timm.data.readers.reader_factory import create_reader

from matmix.experiments.task import Split
from vision.data.decoding import decoding, open_file, shown
from vision.data.folders import (
    NAMES,
    UNDIVIDED,
    check_splits,
    close_names,
    close_or_all,
    counted,
    ending,
    files_below,
    files_in,
    holds_images,
    image_endings,
    is_left_behind,
    listed,
    only,
    split_folders,
    split_of,
    splits_option,
    subfolders,
    where_missing,
)

Kind = Literal["folder", "shards", "npz", "hub"]
KINDS: dict[str, Kind] = {"folder:": "folder", "shards:": "shards", "hf:": "hub"}


class Source(Reader):
    """One of timm's readers that also says its classes, by number, and the label of every image, in order."""

    class_to_idx: dict[str, int]
    left: Counter[str]
    """Files of other kinds that are left out, by their ending."""
    origin: str = ""
    """The name of its folder, where that is one of several."""

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def labels(self) -> list[int]:
        raise NotImplementedError


def kind_of(data: str) -> tuple[Kind, str]:
    """What `data` names, and the path or name of it, found without asking a hub.

    Raises:
        ValueError: for what is not there, or a folder of shards and images.
    """
    for prefix, said in KINDS.items():
        if data.startswith(prefix) and not os.path.exists(data):
            name = data[len(prefix) :]
            if said != "hub" and not os.path.isdir(Path(name).expanduser()):
                raise ValueError(f"data: there is no folder {shown(name)!r}: {where_missing(Path(name).expanduser())}")
            return said, name
    path = Path(data).expanduser()
    if os.path.isdir(path):
        return _kind_of_folder(path), data
    if os.path.exists(path):
        if path.suffix.lower() == ".npz" and path.is_file():
            return "npz", data
        raise ValueError(f"data: {shown(path)} is a file; name a folder (of images, or of .tar shards) or a .npz file")
    hub = re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not data.startswith(".")
    if not hub or os.path.exists(path.parts[0]) or close_names(path.parts[0], _names_here(), 0.75):
        raise ValueError(
            f"data: there is no folder, .npz file or Hugging Face data set (owner/name) {shown(data)!r}: "
            + where_missing(path)
            + (f". If the hub's is meant: --data hf:{data}" if hub else "")
        )
    return "hub", data


def _names_here() -> list[str]:
    return [entry.name for entry in Path().iterdir() if entry.is_dir()]


@cache
def _kind_of_folder(path: Path) -> Kind:
    """Shards or images; both in one folder leave open which are the data."""
    shards, others = _shards_in(path), subfolders(path)
    inner = [folder for folder in others if split_of(folder.name) and _shards_in(folder)]
    if not shards and not inner:
        return "folder"
    images = [folder for folder in others if (not _shards_in(folder) or subfolders(folder)) and holds_images(folder)]
    if images:
        tar = (shards or _shards_in(inner[0]))[0]
        raise ValueError(
            f"data: {shown(path)} holds the shard {shown(tar.relative_to(path))} beside images in "
            f"{listed([folder.name for folder in images])}. Say which are the data: --data shards:{shown(path)} or "
            f"--data folder:{shown(path)}"
        )
    return "shards"


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.[tT][aA][rR]") if not is_left_behind(path.name) and path.is_file())


def open_source(data: str, split: Split, splits: Sequence[str] = ()) -> Source | None:
    """The images of a split; None where the data set has no such split.

    Raises:
        ValueError: for data that are not there or can be read in two ways, a class without images, or classes that
            `train` does not have.
    """
    kind, name = kind_of(data)
    path = Path(name).expanduser()
    if kind == "npz":
        if splits:
            raise ValueError(f"splits: the arrays of {name} say their split in their names; leave it out")
        return JpegArrays.open(path, split)
    if kind == "hub":
        return _hub(name, split, check_splits(splits).get(split))
    if kind == "shards":
        shards = _shards(path, tuple(splits)).get(split)
        return TarShards(shards) if shards else None
    folders = class_splits(path, tuple(splits))[0]
    if split not in folders:
        return None
    source = FolderClasses(folders[split], None if split == "train" else folders.get("train"), tuple(splits))
    source.origin = "" if folders[split] == path else folders[split].name
    return source


@cache
def class_splits(path: Path, splits: tuple[str, ...] = ()) -> tuple[dict[Split, Path], list[Path]]:
    """The folders of the splits, and those that are left out. Classes that stand there undivided are for training."""
    found, others = split_folders(path, splits)
    return (found, others) if found else ({"train": path}, [])


class ClassFolders:
    """The image files of every class of a split, in order: the class is the folder right below the split.

    timm's own reader takes the folder right above the file, and leaves out a class without images; here files may lie
    deeper, and an empty class is an error, not one class less.
    """

    def __init__(self, folder: Path, splits: Sequence[str] = ()) -> None:
        classes = subfolders(folder)
        loose = files_in(folder)
        if not classes:
            raise ValueError(
                f"data: {shown(folder)} has no folders of classes, {only(loose.left, len(loose.images))}; a split "
                f"without them is left out where the others are named: {splits_option()}"
            )
        if tuple(splits) != UNDIVIDED:
            for name in classes:
                _no_splits_below(name)
        owners: dict[str, Path] = {}
        for name in classes:
            twin = owners.setdefault(os.path.realpath(name), name)
            if twin != name:
                raise ValueError(f"data: the class folders {shown(twin)} and {shown(name)} are one folder, by a link")
        self.left = loose.left
        if loose.images:
            self.left["image beside the class folders"] = len(loose.images)
        self.files: dict[str, list[str]] = {}
        for name in classes:
            found = files_below(name, owners)
            if not found.images:
                raise ValueError(f"data: the class folder {shown(name)} holds no image, {only(found.left)}")
            self.files[name.name] = found.images
            self.left.update(found.left)


def _no_splits_below(folder: Path) -> None:
    """A class folder that is itself divided: its splits would be mixed."""
    found = [inner.name for inner in subfolders(folder) if split_of(inner.name)]
    if len({split_of(name) for name in found}) > 1:
        raise ValueError(
            f"data: {shown(folder)} would be a class, but it has {listed(found)}, named as splits. If it is the data "
            f"set: --data {shown(folder)}; if it is a class with folders of that name: --task.splits none"
        )


class FolderClasses(Source):
    """The images of a split, with the class numbers of the training split."""

    def __init__(self, folder: Path, train: Path | None = None, splits: Sequence[str] = ()) -> None:
        found = ClassFolders(folder, splits)
        classes = list(found.files) if train is None else [path.name for path in subfolders(train)]
        self.class_to_idx = {name: index for index, name in enumerate(classes)}
        for name in found.files:
            if name not in self.class_to_idx:
                close = close_names(name, classes)
                raise ValueError(
                    f"data: {shown(folder / name)} is a class that the training split does not have"
                    + (f"; it has {' and '.join(map(shown, close))}" if close else "")
                )
        self.left = found.left
        self.samples = [(path, self.class_to_idx[name]) for name, paths in found.files.items() for path in paths]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, target = self.samples[index]
        return open_file(path), target

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
        self.left = Counter()

    @classmethod
    def open(cls, path: Path, split: Split) -> JpegArrays | None:
        wanted = [f"{part}_{split}" for part in ("jpeg", "off", "y")]
        with decoding(str(path)), np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*wanted, "classes") if name in arrays}
        if not found.keys() & set(wanted):
            return None
        missing = [name for name in (*wanted, "classes") if name not in found]
        if missing:
            raise ValueError(f"data: {path} has no array {', '.join(missing)}")
        data, offsets, labels, classes = found.values()
        if len(offsets) != len(labels) + 1 or (np.diff(offsets) < 0).any() or offsets[-1] > len(data):
            raise ValueError(
                f"data: {path}: off_{split} must rise from 0 to the bytes, one more than {len(labels)} labels"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(
                f"data: {path}: y_{split} must be from 0 to {len(classes) - 1}, the last of the classes, got "
                f"{labels.min()} to {labels.max()}"
            )
        return cls(f"{path}:{split}", data, offsets, labels, [str(name) for name in classes])

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
        self.entries = [(number, *entry) for number, (part, _) in enumerate(parts) for entry in part]
        self.left = sum((left for _, left in parts), Counter())
        classes = max(label for *_, label in self.entries) + 1
        self.class_to_idx = {str(index): index for index in range(classes)}

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        shard, offset, size, _, label = self.entries[index]
        with open_file(self.shards[shard]) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def __len__(self) -> int:
        return len(self.entries)

    def labels(self) -> list[int]:
        return [label for *_, label in self.entries]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        shard, _, _, name, _ = self.entries[index]
        return f"{self.shards[shard]}:{name}"


def _index(shard: Path) -> tuple[list[tuple[int, int, str, int]], Counter[str]]:
    """Offset, size, name and label of every image of a shard, in its order; and how many other files there are."""
    kinds = image_endings()
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    left: Counter[str] = Counter()
    try:
        with tarfile.open(shard, "r:") as tar:  # offsets into a compressed one would be of no use
            for member in tar:
                folder, slash, file = member.name.rpartition("/")
                if member.isdir() or any(is_left_behind(part) for part in Path(member.name).parts):
                    continue
                stem, _, kind = file.partition(".")
                key, kind = f"{folder}{slash}{stem}", kind.lower()
                if f".{kind}" in kinds:
                    if key in images:
                        raise ValueError(f"{images[key][2]} and {member.name} are two images of one name")
                    images[key] = (member.offset_data, member.size, member.name)
                elif kind in ("cls", "json"):
                    text = tar.extractfile(member).read()  # type: ignore[union-attr]
                    labels[key] = int(text if kind == "cls" else json.loads(text)["label"])
                    if labels[key] < 0:
                        raise ValueError(f"{member.name}: a label is a class, from 0 on, got {labels[key]}")
                else:
                    left[ending(file) or "no ending"] += 1
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(shown(f"data: the shard {shard} cannot be read: {type(error).__name__}: {error}")) from error
    missing = [name for key, (_, _, name) in images.items() if key not in labels]
    if missing or not images:
        what = f"{missing[0]} has no .cls or .json with a label" if missing else "no image in it"
        raise ValueError(shown(f"data: the shard {shard}: {what}{f', only {counted(left)}' if left else ''}"))
    return [(*image, labels[key]) for key, image in images.items()], left


class HubImages(Source):
    """A data set of the hub: timm's reader, with all labels at once."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.class_to_idx = inner, inner.class_to_idx
        self.targets = [int(label) for label in inner.dataset[inner.label_key]]
        self.left = Counter()

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)

    def labels(self) -> list[int]:
        return self.targets

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.inner.filename(index) or f"image {index}"


@cache
def _hub(name: str, split: Split, called: str | None = None) -> Source | None:
    """Hugging Face data set; its splits are asked for by their usual names, its image column is found by its kind."""
    if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name):
        raise ValueError(f"data: a data set of the hub is owner/name, got hf:{shown(name)!r}")
    if not _hub_answers(name):
        raise ValueError(
            f"data: there is no folder {name!r} ({where_missing(Path(name))}), and the Hugging Face hub, where it "
            "could be a data set, cannot be reached"
        )
    import datasets

    try:
        names = datasets.get_dataset_split_names(name)
        if called and called not in names:
            raise ValueError(f"splits: {split}={called}: it has no such split{close_or_all(called, names)}")
        found = called or next((known for known in NAMES[split] if known in names), None)
        if found is None:
            return None
        features = datasets.load_dataset_builder(name).info.features or {}
        image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), "image")
        label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), "label")
        return HubImages(create_reader(f"hfds/{name}", None, split=found, input_key=image, target_key=label))
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(f"data: the hub data set {name!r} cannot be opened: {type(error).__name__}: {text}") from error


def _hub_answers(name: str) -> bool:
    """Whether the hub can be reached, or the data set is here from before: it tries for 24 seconds to find out."""
    import datasets
    from huggingface_hub import constants, get_session

    def bare(text: str) -> str:
        return re.sub(r"[\W_]", "", text).lower()  # in the cache, names are spelled otherwise

    kept = Path(datasets.config.HF_DATASETS_CACHE)
    if kept.is_dir() and bare(name) in {bare(folder.name) for folder in kept.iterdir()}:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # which kind depends on the client that the hub's library is built on
        return False
    return True


@cache
def _shards(path: Path, splits: tuple[str, ...] = ()) -> dict[Split, list[Path]]:
    """The shards of every split: those in its folder, or those whose name has it.

    Raises:
        ValueError: for a shard that says no split, or two.
    """
    folders, _ = split_folders(path, () if _shards_in(path) else splits, lambda folder: bool(_shards_in(folder)))
    inner = {split: _shards_in(folder) for split, folder in folders.items()}
    inner = {split: shards for split, shards in inner.items() if shards}
    own = _shards_in(path)
    if own and inner:
        raise ValueError(
            f"data: {shown(path)} holds the shard {shown(own[0].name)} and others in "
            f"{listed([folder.name for folder in folders.values()])}; name one of the folders that hold shards alone"
        )
    if inner:
        return inner
    found: dict[Split, list[Path]] = {}
    patterns = check_splits(splits)
    words = {word for shard in own for word in _words(shard)}
    for split, names in NAMES.items():
        if len(words & set(names)) > 1 and not patterns:
            both = " and ".join(sorted(words & set(names)))
            raise ValueError(
                f"data: the shards in {shown(path)} are named {both}, which all say {split}; say which are "
                f"which: {splits_option()}, patterns as in {split}={names[0]}-*.tar"
            )
    for shard in own:
        said = _said_by(shard, patterns)
        if len(said) != 1 and not (patterns and not said):  # with `splits`, shards of no split are left out
            what = "no split" if not said else f"{' and '.join(said)} at once"
            raise ValueError(
                f"data: the name of the shard {shown(shard)} says {what}; say which are which: {splits_option()}, "
                "patterns as in train=part-*.tar"
            )
        for split in said:
            found.setdefault(split, []).append(shard)
    return found


def _said_by(shard: Path, patterns: dict[Split, str]) -> list[Split]:
    if patterns:
        return [split for split, pattern in patterns.items() if fnmatchcase(shard.name, pattern)]
    return [split for split, names in NAMES.items() if set(names) & _words(shard)]


def _words(shard: Path) -> set[str]:
    return set(re.findall(r"[a-z]+", shard.stem.lower()))


def class_names(source: Source) -> list[str]:
    """The names of the classes, by number."""
    return sorted(source.class_to_idx, key=lambda name: source.class_to_idx[name])
