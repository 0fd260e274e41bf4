"""Cases of the UEA and UCR archives, in files `NAME_TRAIN.ts` and `NAME_TEST.ts`, plain or packed.

A line is a case: its channels with ":" between them, their values with ",", and its class at the end. aeon reads these
files too, but holds numpy and pandas back; so this is a reader of the few lines that are needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from matmix.arguments import checking_arguments
from matmix.experiments.data import Finding
from matmix.ranges import Place
from matmix.spec import hint
from sequence.data.check import words
from sequence.data.faults import BadData, apart, bad, byte_lines, decoded, open_binary, shown, state_of

VARIABLE = "MATMIX_DATA"
SOURCE = "https://www.timeseriesclassification.com/dataset.php"
PACKED = ("", ".gz", ".bz2", ".xz")


class Known(NamedTuple):
    """A published problem: cases, channels, the longest case of both files, classes."""

    train: int
    test: int
    channels: int
    length: int
    classes: int


KNOWN = {
    "EthanolConcentration": Known(261, 263, 3, 1751, 4),
    "FaceDetection": Known(5890, 3524, 144, 62, 2),
    "Handwriting": Known(150, 850, 3, 152, 26),
    "Heartbeat": Known(204, 205, 61, 405, 2),
    "JapaneseVowels": Known(270, 370, 12, 29, 9),
    "PEMS-SF": Known(267, 173, 963, 144, 7),
    "SelfRegulationSCP1": Known(268, 293, 6, 896, 2),
    "SelfRegulationSCP2": Known(200, 180, 7, 1152, 2),
    "SpokenArabicDigits": Known(6599, 2199, 13, 93, 10),
    "UWaveGestureLibrary": Known(120, 320, 3, 315, 8),
}
"""The ten on which models of time series are compared."""


class Cases(NamedTuple):
    """Cases of any length (L_i, C), the number of the class of each, and the names of the classes."""

    values: tuple[np.ndarray, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    filled: int
    """Values that were missing, and are a straight line between their neighbours now."""

    @property
    def longest(self) -> int:
        return max(map(len, self.values))

    @property
    def channels(self) -> int:
        return int(self.values[0].shape[1])

    def chosen(self, at: np.ndarray) -> Cases:
        return self._replace(values=tuple(self.values[i] for i in at), labels=self.labels[at])


@checking_arguments()
def load(data: Place, folder: Place = "") -> dict[str, Cases]:
    """The cases of "train" and "test".

    Args:
        data: a folder that has one NAME_TRAIN.ts and NAME_TEST.ts, or the name of a problem.
        folder: where names are looked for; "" is the one that MATMIX_DATA names, else the current one.

    Raises:
        BadData: for files that are not there, that cannot be read, or are not the published ones.
    """
    files = {part: _file(data, folder, part.upper()) for part in ("train", "test")}
    apart({part: [path] for part, path in files.items()})
    found = {part: read_ts(path) for part, path in files.items()}
    train, test = found["train"], found["test"]
    if train.channels != test.channels or train.classes != test.classes:
        raise BadData(
            f"data: {files['train']} has {train.channels} channels and the classes {', '.join(train.classes)}, "
            f"{files['test']} has {test.channels} and {', '.join(test.classes)}; allowed: the two files of one problem"
        )
    name = files["train"].name.partition("_TRAIN")[0]
    sizes = Known(
        len(train.labels), len(test.labels), train.channels, max(train.longest, test.longest), len(train.classes)
    )
    if name in KNOWN and sizes != KNOWN[name]:
        raise BadData(f"data: {files['train'].parent} has {sizes}, the published {name} {KNOWN[name]}; get it from "
                      f"{SOURCE}?name={name}")  # fmt: skip
    return found


def found(folder: Path) -> Iterator[Finding]:
    """Each problem of the archives below a folder, and the ten that are compared."""
    places = {file.parent for end in PACKED for file in folder.rglob(f"*_TRAIN.ts{end}")}
    for place in sorted(places):
        try:
            cases = load(str(place))
        except BadData as error:
            yield Finding("classes", "damaged", words(error))
            continue
        counts = ", ".join(f"{len(each.labels):,} cases to {part}" for part, each in cases.items())
        yield Finding("classes", "found", f"{place}: {counts}, {cases['train'].channels} channels")
    for name in sorted(set(KNOWN) - {place.name for place in places}):
        yield Finding("classes", "missing", f"{name}: get its two .ts files from {SOURCE}?name={name}")


def _file(data: str, folder: str, part: str) -> Path:
    root = Path(folder or os.environ.get(VARIABLE, ".")).expanduser()
    places = (Path(data).expanduser(), *(root / above / data for above in ("", "uea_ucr", "UEA", "Multivariate_ts")))
    for place in places:
        found = sorted(file for end in PACKED for file in place.glob(f"*_{part}.ts{end}"))
        if len(found) > 1:
            raise BadData(f"data: {place} has several files *_{part}.ts: {', '.join(file.name for file in found)}")
        if found:
            return found[0]
    raise BadData(
        f"data: no folder {data!r} with a file *_{part}.ts, here or in {root}{hint(data, KNOWN)}; get it from {SOURCE}"
        f"?name={Path(data).name}, and name the folder it lies in by --task.folder or the variable {VARIABLE}"
    )


def read_ts(path: Path) -> Cases:
    """The cases of a file; read once as long as it does not change.

    Raises:
        BadData: with file and line, for what is no case.
    """
    return _read(path, *state_of(path))


@cache
def _read(path: Path, changed: int, size: int) -> Cases:
    header: dict[str, list[str]] = {}
    values: list[np.ndarray] = []
    labels: list[int] = []
    numbers: dict[str, int] = {}
    filled, begun = 0, False
    with open_binary(path) as file:
        for number, raw in enumerate(byte_lines(file, path), 1):
            line = decoded(raw, path, number).strip()
            if not line or line.startswith(("#", "%")):
                continue
            if not begun:
                words = line.split()
                if not words[0].startswith("@"):
                    raise bad(path, number, f"{shown(line)} stands before @data", "a .ts file of the archive")
                begun = words[0].lower() == "@data"
                header[words[0].lower()] = words[1:]
                if begun:
                    numbers = _classes(path, number, header)
                continue
            case, missing = _case(path, number, line, values[0].shape[1] if values else 0)
            label = line.rpartition(":")[2].strip()
            if label not in numbers:
                raise bad(path, number, f"the class {shown(label)}", ", ".join(numbers))
            values.append(case)
            labels.append(numbers[label])
            filled += missing
    if not values:
        raise bad(path, 0, "it has no case", "cases below a line @data")
    return Cases(tuple(values), np.array(labels, dtype=np.int64), tuple(numbers), filled)


def _classes(path: Path, number: int, header: dict[str, list[str]]) -> dict[str, int]:
    known = header.get("@classlabel", [])
    if not known or known[0].lower() != "true" or len(known) < 3:
        raise bad(path, number, "it names no classes", "a line @classLabel true, with two classes or more behind it")
    if header.get("@timestamps", ["false"])[0].lower() == "true":
        raise bad(path, number, "its values have time stamps", "@timeStamps false")
    if twice := [name for index, name in enumerate(known) if name in known[1:index]]:
        raise bad(path, number, f"it names the class {shown(twice[0])} twice", "each class once")
    return {name: index for index, name in enumerate(known[1:])}


def _case(path: Path, number: int, line: str, channels: int) -> tuple[np.ndarray, int]:
    """Values (L, C) of a line, and how many of them were missing."""
    parts = line.split(":")[:-1]
    if channels and len(parts) != channels:
        raise bad(path, number, f"{len(parts)} channels", f"{channels}, as in the first case")
    try:
        found = [np.array(part.replace("?", "nan").split(","), dtype=np.float64) for part in parts]
    except ValueError as error:
        raise bad(path, number, str(error), 'numbers, and "?" for what is missing') from None
    lengths = {len(each) for each in found}
    if len(lengths) != 1:
        raise bad(path, number, f"channels of {', '.join(map(str, sorted(lengths)))} steps", "one length for all")
    case = np.stack(found, 1)
    missing = np.isnan(case)
    if not np.isfinite(case[~missing]).all() or missing.all(0).any():
        raise bad(path, number, "a value that is infinite, or a channel with none", "finite values")
    steps = np.arange(len(case))
    for channel in np.flatnonzero(missing.any(0)):
        known = ~missing[:, channel]
        case[:, channel] = np.interp(steps, steps[known], case[known, channel])
    return case, int(missing.sum())
