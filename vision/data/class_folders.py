"""Images in folders of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

from matmix.experiments.task import Split
from matmix.spec import close_names
from vision.data.decoding import open_file, shown
from vision.data.folders import (
    UNDIVIDED,
    files_below,
    files_in,
    listed,
    only,
    split_folders,
    split_of,
    splits_option,
    subfolders,
)
from vision.data.source import Source


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
        self.owners: dict[str, Path] = {}
        for name in classes:
            twin = self.owners.setdefault(os.path.realpath(name), name)
            if twin != name:
                raise ValueError(f"data: the class folders {shown(twin)} and {shown(name)} are one folder, by a link")
        self.left = loose.left
        if loose.images:
            self.left["image beside the class folders"] = len(loose.images)
        self.files: dict[str, list[str]] = {}
        for name in classes:
            found = files_below(name, self.owners)
            if not found.images:
                raise ValueError(
                    f"data: the class folder {shown(name)} holds no image, {only(found.left)}; it must hold one"
                )
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
        self.left, self.places = found.left, found.owners
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
