"""Small csv files of series, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


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
