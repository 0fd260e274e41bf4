"""Recordings with labelled anomalies, as people have them: SMD, SMAP and MSL, PSM, the UCR anomaly archive.

machine-1-2.npz                            train, test, label
smap.npz                                   CHANNEL_train, CHANNEL_test, CHANNEL_label, for many channels
SMD/train/machine-1-1.txt ...              folders train, test and test_label, as SMD is published
MSL_train.npy, MSL_test.npy, MSL_test_label.npy     as in the Time Series Library
train.csv, test.csv, test_label.csv        PSM: the first column is a time stamp
135_UCR_Anomaly_..._1200_4187_4199.txt     UCR: end of training, first and last step of the anomaly, in its name
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from matmix.arguments import checking_arguments
from matmix.experiments.data import Finding
from matmix.ranges import Place
from matmix.spec import hint
from sequence.data.check import words
from sequence.data.faults import UNREADABLE, BadData, arrays_of, bad, open_binary, shown

VARIABLE = "MATMIX_DATA"
SOURCES = {
    "SMD": "https://github.com/NetManAIOps/OmniAnomaly (ServerMachineDataset)",
    "SMAP and MSL": "https://github.com/khundman/telemanom",
    "PSM": "https://github.com/eBay/RANSynCoders",
    "UCR": "https://www.cs.ucr.edu/~eamonn/time_series_data_2018 (UCR_Anomaly)",
}
_ARRAY = re.compile(r"_(train|test|test_label)\.npy$")
FORMS = (
    "*.npz with train, test and label, *_train.npy, train.csv, folders train, test and test_label, or files of the UCR "
    "archive, whose names end in _TRAINEND_BEGIN_END.txt"
)
_UCR = re.compile(r"_(\d+)_(\d+)_(\d+)\.txt(\.gz|\.bz2|\.xz)?$")


class Recording(NamedTuple):
    """Train (n, C) and test (m, C) of one machine or channel, and which steps of the test are anomalous (m,)."""

    name: str
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    filled: int
    """Values that were missing; the last one before each stands there now, and 0 before the first."""


@checking_arguments()
def load(data: Place, folder: Place = "", series: str = "") -> list[Recording]:
    """The recordings of a file or a folder.

    Args:
        data: its path, or its name in `folder`.
        folder: where names are looked for; "" is the one that MATMIX_DATA names, else the current one.
        series: the name of one recording; "" is all.

    Raises:
        BadData: for what is not there, of which parts are absent, or that does not fit together.
    """
    if not data:
        raise BadData("data must name a file or a folder of recordings; get them from " + "; ".join(
            f"{name}: {source}" for name, source in SOURCES.items()))  # fmt: skip
    root = Path(folder or os.environ.get(VARIABLE, ".")).expanduser()
    places = (Path(data).expanduser(), root / data)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise BadData(f"data: there is no {data}, here or in {root}; get it from "
                      + "; ".join(f"{name}: {source}" for name, source in SOURCES.items()))  # fmt: skip
    found = _load(path, _state(path))
    if series:
        names = [one.name for one in found]
        if series not in names:
            raise BadData(f"series: {path} has no recording {series!r}{hint(series, names)}")
        found = [one for one in found if one.name == series]
    widths = {one.train.shape[1] for one in found}
    if len(widths) > 1:
        raise BadData(f"data: the recordings of {path} have {', '.join(map(str, sorted(widths)))} channels; one model "
                      "reads as many in all: name one of them by --task.series")  # fmt: skip
    if len(found) > 1 and all(_UCR.search(one.name) for one in found):
        raise BadData(f"data: {path} has {len(found)} recordings of the UCR archive, each with a model of its own: "
                      f"name one file, such as {found[0].name}")  # fmt: skip
    return found


def found(folder: Path) -> Iterator[Finding]:
    """Every file or folder of recordings below a folder."""
    seen = False
    for path in sorted(_places(folder)):
        try:
            recordings = _load(path, _state(path))
        except BadData as error:
            yield Finding("anomalies", "damaged", words(error))
            continue
        seen = True
        steps = sum(len(one.test) for one in recordings)
        share = sum(int(one.labels.sum()) for one in recordings) / steps
        what = f"{len(recordings)} recordings, {steps:,} steps to test, {100 * share:.1f} % of them anomalous"
        yield Finding("anomalies", "found", f"{path}: {what}")
    if not seen:
        for name, source in SOURCES.items():
            yield Finding("anomalies", "missing", f"{name}: get it from {source}")


def _places(folder: Path) -> set[Path]:
    """What `load` takes: files of npz that hold labels, files of the UCR archive, and folders."""
    places = {path.parent for form in ("*_train.npy", "test_label.csv") for path in folder.rglob(form)}
    places |= {path.parent for path in folder.rglob("test_label") if path.is_dir()}
    places |= {path for path in folder.rglob("*.txt*") if _UCR.search(path.name)}
    for path in folder.rglob("*.npz"):
        with suppress(ValueError, *UNREADABLE), np.load(path, allow_pickle=False) as file:
            if any(name.rpartition("_")[2] == "label" for name in file):
                places.add(path)
    return places


def _state(path: Path) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in _files(path)))


def _files(path: Path) -> list[Path]:
    return [file for file in ([path] if not path.is_dir() else path.rglob("*")) if file.exists()]


@cache
def _load(path: Path, state: tuple[tuple[str, int], ...]) -> list[Recording]:
    if not path.is_dir():
        return _npz(path) if path.suffix == ".npz" else [_ucr(path)]
    files = {file.name: file for file in path.iterdir() if file.is_file()}
    parts = ("train", "test", "test_label")
    if (path / "train").is_dir():
        names = sorted({file.stem for part in parts for file in (path / part).glob("*.txt")})
        return [_made(name, *(_text(_there(path / part, f"{name}.txt"), ",") for part in parts)) for name in names]
    if "train.csv" in files:
        train, test, label = (_text(_there(path, f"{part}.csv"), ",", skip=1) for part in parts)
        if min(train.shape[1], test.shape[1]) < 2:
            raise bad(path, 0, "train.csv or test.csv has a single column", "time stamps, then the series")
        return [_made(path.name, train[:, 1:], test[:, 1:], label[:, -1:])]
    arrays = sorted({re.sub(r"_(train|test|test_label)\.npy$", "", name) for name in files if _ARRAY.search(name)})
    if arrays:
        return [_made(name, *(_array(_there(path, f"{name}_{part}.npy")) for part in parts)) for name in arrays]
    found = [one for name, file in sorted(files.items()) if name.endswith(".npz") for one in _npz(file)]
    found += [_ucr(file) for name, file in sorted(files.items()) if _UCR.search(name)]
    if not found:
        raise bad(path, 0, "it has no recording in a form that is known", FORMS)
    return found


def _array(path: Path) -> np.ndarray:
    found = arrays_of(path)
    if "" not in found:
        raise bad(path, 0, f"it holds the arrays {', '.join(found) or 'none'}", "one array, as .npy")
    return found[""]


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise bad(folder, 0, f"it has no {name}", "all of train, test and test_label")
    return folder / name


def _npz(path: Path) -> list[Recording]:
    file = arrays_of(path)
    named = (name.rpartition("_") for name in file)
    begins = [f"{name}_" for name, _, part in named if name and part in ("train", "test", "label")]
    begins = [""] if "train" in file else list(dict.fromkeys(begins))
    wanted = [f"{begin}{part}" for begin in begins for part in ("train", "test", "label")]
    missing = [name for name in wanted or ["train"] if name not in file]
    if missing:
        raise bad(path, 0, f"it has no {', '.join(missing)}, but {', '.join(list(file)[:6]) or 'nothing'}", FORMS)
    name = path.name.partition(".")[0]
    parts = [wanted[at : at + 3] for at in range(0, len(wanted), 3)]
    return [_made(part[0].rpartition("_")[0] or name, *(file[one] for one in part)) for part in parts]


def _text(path: Path, delimiter: str | None, skip: int = 0) -> np.ndarray:
    try:
        with open_binary(path) as file:
            return np.genfromtxt(file, delimiter=delimiter, skip_header=skip, ndmin=2)
    except (ValueError, *UNREADABLE) as error:
        reason = str(error).split("\n    ")[:2]  # numpy lists every line
        raise bad(path, 0, f"it cannot be read: {' '.join(reason).strip()}", "the same columns in every line") from None


def _ucr(path: Path) -> Recording:
    named = _UCR.search(path.name)
    if named is None:
        raise bad(path, 0, "its name says nothing of an anomaly", FORMS)
    end, first, last = (int(number) for number in named.groups()[:3])
    values = _text(path, None).reshape(-1, 1)  # a column, or all in one line
    if not 0 < end < first <= last <= len(values):
        what = f"{len(values):,} values, and its name says {end}, {first} and {last}"
        raise bad(path, 0, what, "numbers that rise within the values")
    labels = np.zeros(len(values) - end, bool)
    labels[first - end : last - end + 1] = True
    return _made(path.name, values[:end], values[end:], labels)


def _made(name: str, train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> Recording:
    for part, array in (("train", train), ("test", test), ("labels", labels)):
        if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not array.size:
            raise bad(name, 0, f"{part} is {array.dtype} of shape {array.shape}", "numbers, (steps, series)")
    train, test = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (train, test))
    labels = np.asarray(labels)
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels[..., 0].reshape(-1)
    odd = np.flatnonzero((labels != 0) & (labels != 1) if labels.ndim == 1 else [])
    if labels.ndim != 1 or len(odd):
        what = f"the label {shown(labels[odd[0]])} of step {odd[0]}" if len(odd) else f"labels of shape {labels.shape}"
        raise BadData(f"data: {name}: {what}; allowed: 0 or 1 for each step of the test")
    labels = labels == 1
    if np.array_equal(train, test, equal_nan=True):
        raise BadData(f"data: {name}: train and test are the same values; allowed: recordings of their own")
    if train.shape[1] != test.shape[1] or len(test) != len(labels):
        raise BadData(
            f"data: {name}: train {train.shape}, test {test.shape} and {len(labels)} labels do not fit together; "
            "allowed: the same series in both, and a label a step of the test"
        )
    missing = int((~np.isfinite(train)).sum() + (~np.isfinite(test)).sum())
    return Recording(name, _held(train), _held(test), labels, missing)


def _held(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), 0)
    found: np.ndarray = np.where(last >= 0, np.take_along_axis(values, last.clip(0), 0), 0.0)
    return found
