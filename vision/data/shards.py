"""WebDataset shards: which of them are a split's, and the images in them."""

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
from typing import BinaryIO

from matmix.experiments.task import Split
from vision.data.decoding import open_file, shown
from vision.data.folders import (
    NAMES,
    check_splits,
    counted,
    ending,
    image_endings,
    is_left_behind,
    listed,
    split_folders,
    splits_option,
)
from vision.data.source import Source


def shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.[tT][aA][rR]") if not is_left_behind(path.name) and path.is_file())


@cache
def shards_of(path: Path, splits: tuple[str, ...] = ()) -> dict[Split, list[Path]]:
    """The shards of every split: those in its folder, or those whose name has it.

    Raises:
        ValueError: for a shard that says no split, or two.
    """
    folders, _ = split_folders(path, () if shards_in(path) else splits, lambda folder: bool(shards_in(folder)))
    inner = {split: shards_in(folder) for split, folder in folders.items()}
    inner = {split: shards for split, shards in inner.items() if shards}
    own = shards_in(path)
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


class TarShards(Source):
    """WebDataset shards with random access: an entry is (shard, offset, size, name, label)."""

    def __init__(self, shards: Sequence[Path]) -> None:
        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(_index, shards))
        self.shards = [str(shard) for shard in shards]
        self.places = {os.path.realpath(shard): shard for shard in shards}
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
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}; it must be a whole tar archive, not packed, of images with labels"
        raise ValueError(shown(f"data: the shard {shard} cannot be read: {reason}")) from error
    missing = [name for key, (_, _, name) in images.items() if key not in labels]
    if missing or not images:
        what = f"{missing[0]} has no .cls or .json with a label" if missing else "no image in it"
        raise ValueError(shown(f"data: the shard {shard}: {what}{f', only {counted(left)}' if left else ''}"))
    return [(*image, labels[key]) for key, image in images.items()], left
