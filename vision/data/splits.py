"""Which images are for training, validation and test; what the data do not have is held out of the training images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from matmix.experiments.task import Split
from vision.data.class_folders import class_splits
from vision.data.decoding import shown
from vision.data.folders import apart, files_in, listed, several, splits_option, subfolders
from vision.data.images import Images, skipped
from vision.data.source import Source, class_names
from vision.data.sources import kind_of, open_source


@cache
def sources(data: str, as_test: Split, splits: tuple[str, ...] = ()) -> dict[Split, Source]:
    """The splits that a data set has. A lone validation split is what one tests on; that alone can be evaluated on."""
    if not data:
        raise ValueError("name the data: --data PATH")
    wanted = _wanted(as_test)
    found = {split: source for split in wanted if (source := open_source(data, split, splits)) is not None}
    if not found:
        raise ValueError(f"data: {data} has no training, validation or test split")
    if not splits:
        places = {split: source.places for split, source in found.items()}
        apart(places, {split: [source.origin] for split, source in found.items() if source.origin})
    count = len(next(iter(found.values())).class_to_idx)
    if count < 2:
        raise ValueError(_single(data, found))
    for split, source in found.items():
        labels = source.labels()
        if not labels:
            raise ValueError(f"data: the split {split} of {data} has no images")
        if min(labels) < 0:
            raise ValueError(
                f"data: the split {split} of {data} has images without a class (label {min(labels)}); name the splits "
                f"that have them: {splits_option()}"
            )
        last = max(labels)
        if last >= count:
            raise ValueError(f"data: {split} has images of class {last}, the last of the training split is {count - 1}")
    if "val" in found and (as_test == "val" or "test" not in found):
        found["test"] = found.pop("val")
    return found


def _wanted(as_test: Split) -> tuple[Split, ...]:
    return ("train", "val") if as_test == "val" else ("train", "val", "test")


def _single(data: str, found: dict[Split, Source]) -> str:
    """One class is nothing to learn: as a rule the data are one folder further down."""
    source = next(iter(found.values()))
    name = next(iter(source.class_to_idx))
    below = Path(kind_of(data)[1]).expanduser() / source.origin / name
    hint = ""
    if below.is_dir() and len(inner := subfolders(below)) > 1:
        hint = f"; it holds {listed([folder.name for folder in inner])}: if those are meant, --data {below}"
    return shown(f"data: {data} has a single class, {name!r}{hint}")


def _choice(
    data: str, as_test: Split, splits: tuple[str, ...], split: Split, held_out: float, split_seed: int
) -> tuple[Source, list[int]]:
    """The source of a split, and which of its images.

    With nothing held out, what one tests on also picks the weights, as in the papers.
    """
    found = sources(data, as_test, splits)
    missing: list[Split] = [name for name in ("val", "test") if name not in found]
    if split == "val" and "val" in missing and held_out == 0:
        split = "test"
    if split in found and split != "train":
        return found[split], list(range(len(found[split])))
    if "train" not in found:
        raise ValueError(f"data: {data} has no training images")
    if "test" in missing and held_out == 0:
        raise ValueError(f"held_out: with 0 there is nothing to test on, {data} has training images alone")
    reader = found["train"]
    parts = divide(reader.labels(), held_out, len(missing), split_seed, class_names(reader))
    return reader, parts[missing.index(split) if split != "train" else -1]


@cache
def split_images(
    data: str,
    as_test: Split,
    split: Split,
    channels: Literal[1, 3],
    shrink: int,
    broken: str,
    held_out: float,
    split_seed: int,
    splits: tuple[str, ...] = (),
) -> Images:
    """The images of a split; see `vision.tasks.classify.Classify` for the settings."""
    reader, indices = _choice(data, as_test, splits, split, held_out, split_seed)
    images = Images(reader, indices, channels, shrink)
    if broken == "skip":
        images.skip_broken()
        skipped(split, len(indices), images.broken)
    if shrink:
        images.hold()
    return images


def left_out(data: str, as_test: Split, splits: tuple[str, ...] = ()) -> dict[str, int]:
    """Files that are no images, by their ending, and folders that are no split: nothing is done with them."""
    found = sum((source.left for source in sources(data, as_test, splits).values()), Counter())
    kind, name = kind_of(data)
    if kind != "folder":
        return dict(found.most_common())
    path = Path(name).expanduser()
    folders, others = class_splits(path, splits)
    others = others + [folder for split, folder in folders.items() if split not in _wanted(as_test)]
    if path not in folders.values():  # else its own files are counted with the classes
        beside = files_in(path)
        found += beside.left + Counter({"image beside the splits": len(beside.images)})
    return dict(found.most_common()) | {f"folder {shown(other.name)}": 1 for other in others}


def in_words(left: dict[str, int]) -> str:
    """What is left out, in one line."""
    return ", ".join(kind if kind.startswith("folder ") else f"{count:,} {kind}" for kind, count in left.items())


def summary(data: str, as_test: Split, splits: tuple[str, ...], held_out: float, split_seed: int) -> str:
    """What was found, for people to check: where each split comes from, its classes, and what is left out."""
    found = sources(data, as_test, splits)
    lines = [f"data: {shown(data)}"]
    whole: list[str] = []
    for split in ("train", "val", "test"):
        if split == "train" and split not in found:
            continue
        source, indices = _choice(data, as_test, splits, split, held_out, split_seed)
        names = class_names(source)
        labels = source.labels()
        counts = Counter(names[labels[index]] for index in indices)
        origin = next((name for name, other in found.items() if other is source), split)
        of_which = "" if len(indices) == len(source) and origin == split else f" of the {len(source):,} of {origin}"
        where = f" ({shown(source.origin)})" if source.origin else ""
        lines.append(f"  {split}: {several(len(indices), 'image')}{of_which}{where}, {_classes(counts)}")
        lacks = [name for name in whole if name not in counts]
        if lacks:
            lines.append(f"    none of {listed(lacks, word='')}")
        whole = whole or [name for name in names if name in counts]
    left = left_out(data, as_test, splits)
    if left:
        lines.append("  left out: " + in_words(left))
    return "\n".join(lines)


def _classes(counts: Counter[str], most: int = 12) -> str:
    """Classes with the number of their images: all of them, or the largest and smallest of many."""
    head = "1 class" if len(counts) == 1 else f"{len(counts)} classes"
    if len(counts) <= most:
        return f"{head}: " + ", ".join(f"{shown(name)} {count:,}" for name, count in sorted(counts.items()))
    (largest, high), (smallest, low) = counts.most_common(1)[0], counts.most_common()[-1]
    return f"{head}, from {low:,} ({shown(smallest)}) to {high:,} ({shown(largest)}) images each"


def divide(labels: list[int], share: float, parts: int, seed: int, names: Sequence[str] = ()) -> list[list[int]]:
    """Indices of `parts` disjoint parts with `share` of every class (at least one image), and of the rest, last."""
    place = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=place.__getitem__):
        by_class.setdefault(labels[index], []).append(index)
    divided: list[list[int]] = [[] for _ in range(parts + 1)]
    for label, members in by_class.items():
        count = max(1, math.floor(share * len(members))) if share else 0
        if count * parts >= len(members):
            name = shown(names[label]) if names else label
            raise ValueError(f"held_out: class {name} has {len(members)} images, too few to hold {parts} x {count} out")
        for part in range(parts):
            divided[part] += members[part * count : (part + 1) * count]
        divided[-1] += members[parts * count :]
    return [sorted(part) for part in divided]
