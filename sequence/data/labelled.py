"""Sequences with a class each, as a prepared data set on disk: `train.npy`, `train.starts.npy`, `train.labels.npy`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sequence.data.ragged import Ragged, RaggedWriter


class Labelled(NamedTuple):
    """Sequences of token numbers, and the class of each."""

    rows: Ragged
    labels: np.ndarray

    def chosen(self, indices: np.ndarray) -> Labelled:
        """Some of them; the values are shared."""
        return Labelled(self.rows.chosen(indices), self.labels[indices])

    def facts(self, classes: int) -> dict[str, Any]:
        """How many, how long, and the share of each class."""
        lengths = self.rows.lengths
        counts = np.bincount(self.labels, minlength=classes)
        return {
            "examples": len(self.rows),
            "mean length": round(float(lengths.mean()), 1),
            "median length": float(np.median(lengths)),
            "longest": int(lengths.max()),
            "share of each class": [round(float(share), 4) for share in counts / len(self.labels)],
        }


def write(folder: Path, split: str, rows: Iterable[tuple[np.ndarray, int]], dtype: str = "uint8") -> int:
    """Write a split as its rows come; their number."""
    labels: list[int] = []
    with RaggedWriter(folder, split, dtype) as writer:
        for row, label in rows:
            writer.append(row)
            labels.append(label)
    np.save(folder / f"{split}.labels.npy", np.array(labels, np.uint8))
    return len(labels)


def read(folder: Path, split: str) -> Labelled:
    """A split that was written."""
    return Labelled(Ragged.open(folder, split), np.load(folder / f"{split}.labels.npy"))
