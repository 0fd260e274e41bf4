"""Image data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from timm.data.readers.reader_factory import create_reader

from matmix.experiments.task import Split
from vision.data.decoding import shown
from vision.data.folders import NAMES, close_or_all, where_missing
from vision.data.source import Source


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
def open_hub(name: str, split: Split, called: str | None = None) -> Source | None:
    """Hugging Face data set; its splits are asked for by their usual names, its image column is found by its kind."""
    if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name):
        raise ValueError(f"data: a data set of the hub is owner/name, got hf:{shown(name)!r}")
    if not hub_answers(name):
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


def hub_answers(name: str) -> bool:
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
