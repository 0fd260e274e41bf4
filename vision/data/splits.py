"""Which images are for training, validation and test; what the data do not have is held out of the training images."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Literal

import torch

from matmix.experiments.task import Split
from vision.data.images import Images
from vision.data.sources import Source, open_source


@cache
def sources(data: str, as_test: Split) -> dict[Split, Source]:
    """The splits that a data set has. A lone validation split is what one tests on; that alone can be evaluated on."""
    if not data:
        raise ValueError("name the data: --data PATH")
    wanted: tuple[Split, ...] = ("train", "val") if as_test == "val" else ("train", "val", "test")
    found = {split: source for split in wanted if (source := open_source(data, split)) is not None}
    if not found:
        raise ValueError(f"data: {data} has no training, validation or test split")
    if "val" in found and (as_test == "val" or "test" not in found):
        found["test"] = found.pop("val")
    return found


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
) -> Images:
    """The images of a split; see `vision.tasks.classify.Classify` for the settings.

    With nothing held out, what one tests on also picks the weights, as in the papers.
    """
    found = sources(data, as_test)
    missing: list[Split] = [name for name in ("val", "test") if name not in found]
    if split == "val" and "val" in missing and held_out == 0:
        return split_images(data, as_test, "test", channels, shrink, broken, held_out, split_seed)
    if split in found and split != "train":
        reader, indices = found[split], list(range(len(found[split])))
    else:
        if "train" not in found:
            raise ValueError(f"data: {data} has no training images")
        if "test" in missing and held_out == 0:
            raise ValueError(f"held_out: with 0 there is nothing to test on, {data} has training images alone")
        reader = found["train"]
        parts = divide(reader.labels(), held_out, len(missing), split_seed)
        indices = parts[missing.index(split) if split != "train" else -1]
    images = Images(reader, indices, channels, shrink)
    if broken == "skip":
        images.skip_broken()
        if images.broken:
            names = ", ".join(images.broken[:5]) + (", ..." if len(images.broken) > 5 else "")
            warnings.warn(f"{split}: {len(images.broken)} of {len(indices)} images are left out: {names}", stacklevel=2)
    if shrink:
        images.hold()
    return images


def divide(labels: list[int], share: float, parts: int, seed: int) -> list[list[int]]:
    """Indices of `parts` disjoint parts with `share` of every class (at least one image), and of the rest, last."""
    place = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=place.__getitem__):
        by_class.setdefault(labels[index], []).append(index)
    divided: list[list[int]] = [[] for _ in range(parts + 1)]
    for label, members in by_class.items():
        count = max(1, math.floor(share * len(members))) if share else 0
        if count * parts >= len(members):
            raise ValueError(
                f"held_out: class {label} has {len(members)} images, too few to hold {parts} x {count} out"
            )
        for part in range(parts):
            divided[part] += members[part * count : (part + 1) * count]
        divided[-1] += members[parts * count :]
    return [sorted(part) for part in divided]
