"""Grey pictures with a class each, as a prepared data set on disk: `images.npy` (n, h, w) uint8 and `labels.npy`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sequence.data.cache import Entry


class Pictures(NamedTuple):
    """Pictures (n, h, w) uint8, mapped from the disk, and the class of each (n,)."""

    images: np.ndarray
    labels: np.ndarray
    digest: str
    facts: dict[str, Any]


def write(folder: Path, parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int, size: tuple[int, int]) -> None:
    """Write `count` pictures as they come, some (images, labels) at a time, in bounded memory."""
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, *size))
    labels = np.zeros(count, np.uint8)
    done = 0
    for some, theirs in parts:
        images[done : done + len(some)] = some
        labels[done : done + len(some)] = theirs
        done += len(some)
    if done != count:
        raise AssertionError(f"{count} pictures were promised, {done} came")
    images.flush()
    np.save(folder / "labels.npy", labels)


def read(entry: Entry) -> Pictures:
    """What was written."""
    images = np.load(entry.folder / "images.npy", mmap_mode="r")
    return Pictures(images, np.load(entry.folder / "labels.npy"), entry.digest, entry.facts)


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
