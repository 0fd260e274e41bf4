"""The splits of the speech task, decoded and prepared once: samples, or the coefficients of a spectrum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from matmix.experiments.extras import require
from sequence.data import labelled, speech
from sequence.data.cache import cached, source_key
from sequence.data.faults import BadData, Broken, bad
from sequence.data.labelled import Labelled
from sequence.data.parallel import progress
from sequence.data.speech import Sound

LAYOUT = 1
"""Of the prepared files; another number makes them anew."""
COEFFICIENTS, FFT, HOP, MELS = 20, 200, 100, 64
"""Of S4's code: 161 frames of 20 coefficients a second."""
FULL_SCALE = 32768
MOST = 256
"""Classes: labels are kept as bytes."""
PUBLISHED = {"train": 84_843, "val": 9_981, "test": 11_005}
"""Recordings of the 35 words by the published lists."""


class Speech(NamedTuple):
    """Recordings of the three splits, each as L * C numbers in a row, and what they were prepared to."""

    splits: dict[str, Labelled]
    classes: tuple[str, ...]
    mean: np.ndarray
    """Over the training recordings, (C,),"""
    std: np.ndarray
    """and the deviation."""
    digest: str
    facts: dict[str, Any]


@cache
def prepared(data: str, words: str, inputs: str, sample_rate: int, broken: str, cache: str) -> Speech:
    """All splits: samples (int16, C = 1), or MFCCs (float32, C = 20)."""
    files = speech.sources(data, words)
    classes = speech.classes_of(data, words)
    if len(classes) > MOST:
        raise BadData(f"data: {data} has {len(classes)} folders of words; allowed: at most {MOST}")
    key = {"layout": LAYOUT, "data": data, "sources": source_key(*files), "words": words, "inputs": inputs,
           "sample_rate": sample_rate, "broken": broken}  # fmt: skip
    channels = COEFFICIENTS if inputs == "mfcc" else 1

    def make(folder: Path) -> dict[str, Any]:
        faults, sums = Broken(broken), np.zeros((3, channels))
        for split, published in PUBLISHED.items():
            rows = faults.kept(_rows(data, split, words, inputs, sample_rate))
            if split == "train":
                rows = _counted(rows, sums)
            with progress(f"reading {split} of {data}", published, "recordings") as advance:
                told = (row for row in rows if advance(1) is None)
                count = labelled.write(folder, split, told, "float32" if inputs == "mfcc" else "int16")
            if not count:
                rule = "at least one in each split: by the two lists, or without them by a hash of the speaker"
                raise bad(data, 0, f"{split} has no recording", rule)
        mean = sums[1] / sums[0]
        std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
        return {**faults.facts(), "mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}

    entry = cached("speech", key, make, cache)
    facts = dict(entry.facts)
    mean, std = (np.array(facts.pop(name), np.float32) for name in ("mean", "std"))
    splits = {split: labelled.read(entry.folder, split) for split in speech.SPLITS}
    return Speech(splits, classes, mean, std, entry.digest, facts)


def scaled(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Prepared numbers (L, C) as a model reads them: mean 0 and deviation 1 over the training recordings."""
    return ((_unit(values) - mean) / std).astype(np.float32)


def _unit(values: np.ndarray) -> np.ndarray:
    """Samples from -1 to 1; coefficients as they are."""
    return values / np.float32(FULL_SCALE) if values.dtype == np.int16 else values


def _counted(rows: Iterator[tuple[np.ndarray, int]], sums: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The rows, while their number, sum and sum of squares are added up for each channel."""
    for row, label in rows:
        values = _unit(row.reshape(-1, sums.shape[1])).astype(np.float64)
        sums += np.stack((np.full(sums.shape[1], len(values)), values.sum(0), np.square(values).sum(0)))
        yield row, label


def frames(samples: int) -> int:
    """How many frames so many samples make."""
    return 1 + samples // HOP


def _rows(
    data: str, split: str, words: str, inputs: str, sample_rate: int
) -> Iterator[tuple[np.ndarray, int] | BadData]:
    for sound in speech.read(data, split, words):
        samples = speech.decoded(sound, sample_rate)
        if isinstance(samples, np.ndarray) and inputs == "mfcc":
            samples = coefficients(sound, samples, sample_rate)
        yield samples if isinstance(samples, BadData) else (samples.reshape(-1), sound.label)


def coefficients(sound: Sound, samples: np.ndarray, sample_rate: int) -> np.ndarray | BadData:
    """MFCCs (frames, 20) of a recording."""
    if len(samples) <= FFT // 2:  # a window is completed at the ends by what stands there, turned round
        return bad(sound.where, sound.number, f"{len(samples)} samples", f"more than {FFT // 2} for inputs='mfcc'")
    wave = torch.from_numpy(samples.astype(np.float32) / FULL_SCALE)
    return _mfcc(sample_rate)(wave).T.contiguous().numpy()


@cache
def _mfcc(sample_rate: int) -> Any:
    """torchaudio's, which S4's code takes: another library has other mel filters, and with them other numbers."""
    require("torchaudio")
    from torchaudio.transforms import MFCC

    with warnings.catch_warnings():  # 64 mel filters of 101 frequencies: the lowest are empty, as published
        warnings.simplefilter("ignore", UserWarning)
        spectrum = {"n_fft": FFT, "n_mels": MELS}
        return MFCC(sample_rate=sample_rate, n_mfcc=COEFFICIENTS, log_mels=True, melkwargs=spectrum)
