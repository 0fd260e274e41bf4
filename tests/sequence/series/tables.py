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


def cases(folder: Path, name: str = "Waves", counts: tuple[int, int] = (24, 9)) -> Path:
    """`NAME_TRAIN.ts` and `NAME_TEST.ts`: two channels of 5 to 12 steps, the class is the sign of the first."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    head = [
        "# cases",
        f"@problemName {name}",
        "@timeStamps false",
        "@univariate false",
        "@classLabel true up down",
        "@data",
    ]
    for part, count in zip(("TRAIN", "TEST"), counts, strict=True):
        lines = []
        for number in range(count):
            channels = rng.standard_normal((2, int(rng.integers(5, 13))))
            channels[0] += 3 if number % 2 else -3
            words = [",".join(f"{value:.4f}" for value in channel) for channel in channels]
            lines.append(":".join([*words, ("down", "up")[number % 2]]))
        (folder / f"{name}_{part}.ts").write_text("\n".join([*head, *lines]) + "\n")
    return folder


def recordings(file: Path, rows: int = 200) -> Path:
    """A file of npz with a wave of three channels, and a test in which two spans are far off."""
    rng = np.random.default_rng(0)
    train, test = (
        np.sin(2 * np.pi * np.arange(rows)[:, None] / 20 + np.arange(3)) + 0.1 * rng.standard_normal((rows, 3))
        for _ in range(2)
    )
    labels = np.zeros(rows, np.uint8)
    for first, end in ((50, 60), (120, 124)):
        labels[first:end] = 1
        test[first:end] += 4
    np.savez(file, train=train, test=test, label=labels)
    return file
