"""Small csv files of series, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sequence.series.data.m4 import FREQUENCIES


def write(file: Path, rows: int = 400, columns: tuple[str, ...] = ("a", "OT", "b"), freq: str = "h") -> Path:
    """A daily wave and noise in each column, each of its own size."""
    rng = np.random.default_rng(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    waves = np.sin(2 * np.pi * np.arange(rows)[:, None] / 24 + np.arange(len(columns)))
    values = (waves + 0.3 * rng.standard_normal((rows, len(columns)))) * (1 + np.arange(len(columns))) + 5
    frame = pd.DataFrame(values, columns=list(columns))
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq=freq).astype(str))
    frame.to_csv(file, index=False)
    return file


def m4(folder: Path, frequency: str = "Weekly") -> Path:
    """Both files of a frequency, with as many series as published, of 20 to 40 steps."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    asked_for = FREQUENCIES[frequency]
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(asked_for.series):
        size = int(rng.integers(20, 40))
        walk = 100 + np.cumsum(rng.standard_normal(size + asked_for.horizon))
        for part, values in (("train", walk[:size]), ("test", walk[size:])):
            width = 40 if part == "train" else asked_for.horizon
            cells = [f'"{value:.3f}"' for value in values] + [""] * (width - len(values))
            lines[part].append(",".join([f'"{frequency[0]}{number + 1}"', *cells]))
    for part, rows in lines.items():
        (folder / f"{frequency}-{part}.csv").write_text("\n".join(["V1,V2", *rows]) + "\n")
    return folder
