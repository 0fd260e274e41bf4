"""What a source of images is: one of timm's readers that knows its classes and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from timm.data.readers.reader import Reader


class Source(Reader):
    """One of timm's readers that also says its classes, by number, and the label of every image, in order."""

    class_to_idx: dict[str, int]
    left: Counter[str]
    """Files of other kinds that are left out, by their ending."""
    origin: str = ""
    """The name of its folder, where that is one of several."""
    places: Mapping[str, Path] = MappingProxyType({})
    """The folders or files that its images are in, by their real paths; none where no link can lead there."""

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def labels(self) -> list[int]:
        raise NotImplementedError


def class_names(source: Source) -> list[str]:
    """The names of the classes, by number."""
    return sorted(source.class_to_idx, key=lambda name: source.class_to_idx[name])
