"""What is in a folder for the task text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matmix.experiments.data import Finding
from sequence.data import reviews
from sequence.data.check import Rows
from sequence.data.faults import BadData


def check(folder: Path) -> Iterator[Finding]:
    """The reviews of both splits, row by row, below the folder or in one of its folders that says imdb."""
    named = sorted(path for path in folder.iterdir() if path.is_dir() and "imdb" in path.name.lower())
    for place in [*named, folder]:
        try:
            files = reviews.files_of(str(place), ("*",) if place == folder else ("*", "*/*"))
        except BadData:
            continue
        for split in files:
            rows = Rows("text")
            yield from rows.faults(reviews.read(str(place), split))
            yield rows.summary(", ".join(map(str, files[split])), reviews.ROWS)
        return
    yield Finding(
        "text", "missing",
        f"train and test of IMDb as csv or parquet: {reviews.HUB} of the Hugging Face hub; without --data the task "
        "downloads it",
    )  # fmt: skip
