"""Encoded images end to end in the arrays of a .npz file."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np

from matmix.experiments.task import Split
from matmix.files import Damaged, read_arrays
from vision.data.source import Source


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
        try:
            arrays = read_arrays(path, "encoded images")
        except Damaged as error:
            raise ValueError(
                f"data: {error}; {path.name} must be a .npz file as numpy writes it, a zip archive"
            ) from None
        found = {name: arrays[name] for name in (*wanted, "classes") if name in arrays}
        if not found.keys() & set(wanted):
            return None
        missing = [name for name in (*wanted, "classes") if name not in found]
        if missing:
            raise ValueError(f"data: {path} has no array {', '.join(missing)}")
        data, offsets, labels, classes = found.values()
        for name, array in ((f"off_{split}", offsets), (f"y_{split}", labels)):
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise ValueError(
                    f"data: {path}: {name} must be a row of whole numbers, got {array.dtype} of shape {array.shape}"
                )
        for name, array in ((f"jpeg_{split}", data), ("classes", classes)):
            if array.ndim != 1 or not len(array):
                raise ValueError(f"data: {path}: {name} must be a row of at least one, got shape {array.shape}")
        if (
            len(offsets) != len(labels) + 1
            or (np.diff(offsets) < 0).any()
            or (offsets[0], offsets[-1]) != (0, len(data))
        ):
            raise ValueError(
                f"data: {path}: off_{split} must rise from 0 to {len(data)}, the bytes, one more than "
                f"{len(labels)} labels; got {len(offsets)} from {offsets[:1]} to {offsets[-1:]}"
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
