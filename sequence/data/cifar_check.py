"""What is in a folder for the task image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matmix.experiments.data import Finding
from sequence.data import cifar
from sequence.data.check import Rows, words
from sequence.data.faults import BadData

PART = "image"


def check(folder: Path) -> Iterator[Finding]:
    """Both splits of CIFAR-10, picture by picture, in the folder or in one of its folders that says cifar."""
    places = [folder, *sorted(path for path in folder.iterdir() if "cifar" in path.name.lower())]
    for place in places:
        if place.is_dir() and not _has(place):
            continue
        for split, published in cifar.PUBLISHED.items():
            rows = Rows(PART)
            yield from rows.faults(cifar.read(str(place), split))
            yield rows.summary(f"{split} of {place}", published)
        return
    where = f"cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/, or {cifar.HUB} of the Hugging Face hub"
    yield Finding(PART, "missing", f"{where}; without --data the task downloads the latter")


def _has(place: Path) -> bool:
    """Whether a folder holds the data, whole or not."""
    try:
        return any(_cifar(file) for file in cifar.files_of(str(place)))
    except BadData as error:
        return "holds no CIFAR-10" not in words(error)


def _cifar(file: Path) -> bool:
    """A release of the Long Range Arena may stand beside IMDb's parquet files."""
    return file.suffix not in (".parquet", ".npz") or "cifar" in str(file).lower()
