"""Square grey pictures with a class each, as a prepared data set on disk: `images.bin` (bytes) and `labels.npy`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sequence.data.cache import Entry


class Pictures(NamedTuple):
    """Pictures (n, h, h) uint8, mapped from the disk, and the class of each (n,)."""

    images: np.ndarray
    labels: np.ndarray
    digest: str
    facts: dict[str, Any]


def write(folder: Path, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write pictures as they come, some (images, labels) at a time, in bounded memory; their number."""
    labels = [np.zeros(0, np.uint8)]
    with open(folder / "images.bin", "wb") as file:
        for some, theirs in parts:
            file.write(np.ascontiguousarray(some, np.uint8).data)
            labels.append(theirs.astype(np.uint8))
    np.save(folder / "labels.npy", np.concatenate(labels))
    return sum(map(len, labels))


def read(entry: Entry) -> Pictures:
    """What was written."""
    labels = np.load(entry.folder / "labels.npy")
    values = np.memmap(entry.folder / "images.bin", np.uint8, "r")
    side = math.isqrt(len(values) // len(labels))
    return Pictures(values.reshape(len(labels), side, side), labels, entry.digest, entry.facts)


def cut(count: int, shares: tuple[float, ...], seed: int | None) -> list[np.ndarray]:
    """Numbers below `count` in parts; the first is what the shares of the others leave.

    With a seed as `torch.utils.data.random_split` divides, which is what S4's line of work does with seed 42; with None
    in order, as the Long Range Arena does.
    """
    sizes = [int(share * count) for share in shares]
    if seed is None:
        numbers = np.arange(count)
    else:
        numbers = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.split(numbers, np.cumsum([count - sum(sizes), *sizes[:-1]]))
