"""Spoken words (Speech Commands, arXiv 1804.03209): one-second recordings, from the published formats.

============================  =====================================================================================
a folder                      one folder a word with .wav (or .flac, .ogg) files, `validation_list.txt` and
                              `testing_list.txt`: `speech_commands_v0.02.tar.gz`, unpacked
a folder of .parquet files    as the Hugging Face hub has them, train, validation and test in their names
`owner/name`                  a data set of the hub, downloaded once by `datasets`
============================  =====================================================================================

The two lists say which recordings are for validation and for the test. Where a folder has neither, the rule by which
they were made says it: a tenth each, by a hash of the speaker, so that no speaker is on two sides.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from matmix.arguments import checking_arguments
from matmix.experiments.extras import require
from matmix.ranges import Place
from sequence.data.faults import BadData, bad, from_the_hub, open_binary, shown, text_lines

HUB = "google/speech_commands"
CONVERTED = "refs/convert/parquet"
"""The hub's own copy of a data set as parquet files; the repository itself holds a script, which no library runs."""
VERSION = "v0.02"
INSIDE = ("", "speech_commands_v0.02", "SpeechCommands", "SpeechCommands/speech_commands_v0.02")
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Ours and the hub's."""
SOUNDS = (".wav", ".flac", ".ogg")
TEN = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
WORDS = (
    *TEN, "backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy", "house",
    "learn", "marvin", "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "visual", "wow", "zero",
)  # fmt: skip
NOISE = "_background_noise_"
PEOPLE = 2**27 - 1
"""Hashes of speakers are taken modulo one more than this."""


class Sound(NamedTuple):
    """A recording that is not yet decoded: where it stands, its number there, a file or its bytes, and its class."""

    where: str
    number: int
    source: Path | bytes
    label: int


@checking_arguments()
def classes_of(data: Place, words: str) -> tuple[str, ...]:
    """The classes by number, in alphabetical order: the 35 words, ten of them, or all folders that there are."""
    if words != "folders":
        return tuple(sorted(WORDS if words == "35" else TEN))
    root = Path(data).expanduser()
    if not root.is_dir() or _parquet(root):
        raise BadData(f"data: words='folders' is for a folder with a folder a word, got {data}")
    return tuple(sorted(folder.name for folder in _folders(_inner(root))))


@checking_arguments()
def sources(data: Place, words: str) -> list[Path]:
    """The files that are read; none where `data` names a data set of the hub."""
    root = Path(data).expanduser()
    if not root.is_dir():
        if re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not root.exists() and not Path(root.parts[0]).exists():
            return []
        raise BadData(f"data: there is no folder {root}; allowed: {_allowed()}")
    if found := _parquet(root):
        return found
    inner, classes = _inner(root), classes_of(data, words)
    missing = [word for word in classes if not (inner / word).is_dir()]
    if missing or not classes:
        raise BadData(f"data: {root} has no folder {', '.join(missing) or 'of a word'}; allowed: {_allowed()}")
    sounds = _sounds(inner, classes)
    _once(sounds)
    return [*(inner / name for name in LISTS.values() if (inner / name).is_file()), *sounds]


@checking_arguments()
def read(data: Place, split: str, words: str) -> Iterator[Sound]:
    """The recordings of a split, in the order of their names."""
    files, classes = sources(data, words), classes_of(data, words)
    if not files:
        yield from _hub(data, split, classes)
    elif files[0].suffix == ".parquet":
        yield from _tables(Path(data), files, split, classes)
    else:
        inner = _inner(Path(data).expanduser())
        listed, number = _listed(inner, classes), {word: number for number, word in enumerate(classes)}
        for file in _sounds(inner, classes):
            name = f"{file.parent.name}/{file.name}"
            if (listed.get(name, "train") if listed is not None else split_of(file.name)) == split:
                yield Sound(str(file), 0, file, number[file.parent.name])


def decoded(sound: Sound, sample_rate: int) -> np.ndarray | BadData:
    """The samples of a recording, int16, or what is wrong with it."""
    require("soundfile")
    import soundfile

    source = io.BytesIO(sound.source) if isinstance(sound.source, bytes) else sound.source
    try:
        samples, rate = soundfile.read(source, dtype="int16", always_2d=True)
    except Exception as error:  # the library's own errors, and what its file objects raise
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return bad(sound.where, sound.number, f"it cannot be decoded: {reason[0]}", "a whole .wav, .flac or .ogg file")
    if rate != sample_rate:
        return bad(sound.where, sound.number, f"its rate is {rate} Hz", f"{sample_rate} Hz (--task.sample-rate)")
    if samples.shape[1] != 1:
        return bad(sound.where, sound.number, f"it has {samples.shape[1]} channels", "one")
    if not len(samples):
        return bad(sound.where, sound.number, "it has no samples", "at least one")
    return samples[:, 0]


def split_of(name: str) -> str:
    """The split by the published rule: what stands before `_nohash_` is the speaker, and each speaker is in one."""
    speaker = re.sub(r"_nohash_.*$", "", Path(name).stem)
    share = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (PEOPLE + 1) * 100 / PEOPLE
    return "val" if share < 10 else "test" if share < 20 else "train"


# ------------------------------------------------------------------ folders


def _inner(root: Path) -> Path:
    """The folder with the words, where the archive was unpacked into a folder of its own."""
    return next((root / inside for inside in INSIDE if (root / inside / LISTS["test"]).is_file()), root)


def _folders(inner: Path) -> list[Path]:
    return [folder for folder in inner.iterdir() if folder.is_dir() and folder.name[0] not in "._"]


def _sounds(inner: Path, classes: tuple[str, ...]) -> list[Path]:
    found = [sorted(f for f in (inner / word).iterdir() if f.suffix.lower() in SOUNDS) for word in classes]
    return [file for files in found for file in files]


def _once(sounds: list[Path]) -> None:
    """Refuse a recording that stands twice by a link: it would be of two classes, or in two splits."""
    real = {folder: os.path.realpath(folder) for folder in {file.parent for file in sounds}}
    seen: dict[str, Path] = {}
    for file in sounds:
        place = os.path.realpath(file) if file.is_symlink() else os.path.join(real[file.parent], file.name)
        first = seen.setdefault(place, file)
        if first is not file:
            raise BadData(f"data: {first} and {file} are one file, by a link; allowed: each recording once")


def _listed(inner: Path, classes: tuple[str, ...]) -> dict[str, str] | None:
    """The split of each file that a list names; None where there is no list."""
    there = [name for name in LISTS.values() if (inner / name).is_file()]
    if not there:
        return None
    if len(there) < len(LISTS):
        raise BadData(f"data: {inner} has {there[0]} alone; allowed: {' and '.join(LISTS.values())}, or neither")
    found: dict[str, str] = {}
    for split, list_name in LISTS.items():
        with open_binary(inner / list_name) as file:
            lines = list(text_lines(file, inner / list_name))
        for number, line in enumerate(lines, 1):
            name = line.strip()
            if name.partition("/")[0] not in classes:
                continue
            if not (inner / name).is_file():
                raise bad(inner / list_name, number, f"there is no file {shown(name)}", "files of this folder")
            if name in found and found[name] != split:
                raise bad(inner / list_name, number, f"{shown(name)} is in the other list too", "files of one split")
            found[name] = split
    return found


# ------------------------------------------------------------------ tables


def _parquet(root: Path) -> list[Path]:
    return sorted(root.rglob("*.parquet"))


def _tables(root: Path, files: list[Path], split: str, classes: tuple[str, ...]) -> Iterator[Sound]:
    from pyarrow import ArrowException, parquet

    mine = [f for f in files if SPLITS[split] in re.split(r"[\W_]+", str(f.relative_to(root.expanduser())).lower())]
    if not mine:
        raise BadData(f"data: {root} has no file of the split {SPLITS[split]}; allowed: {_allowed()}")
    for file in mine:
        number = 0
        try:
            opened = parquet.ParquetFile(file)
            names = _label_names(file, opened.schema_arrow)
            for batch in opened.iter_batches(batch_size=256, columns=["audio", "label"]):
                for row in batch.to_pylist():
                    number += 1
                    yield from _row(str(file), number, row, names, classes)
        except (ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise bad(file, number + 1, f"it cannot be read on: {reason}", "a whole parquet file") from error


def _label_names(file: Path, schema: Any) -> list[str]:
    """What the labels of a file mean: `datasets` keeps it in the file's own metadata."""
    missing = [column for column in ("audio", "label") if column not in schema.names]
    if missing:
        raise bad(file, 0, f"the columns are {shown(', '.join(schema.names))}", "audio and label among them")
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (KeyError, TypeError, ValueError) as error:
        raise bad(file, 0, "it does not say what its labels mean", "a file that `datasets` has written") from error


def _hub(name: str, split: str, classes: tuple[str, ...]) -> Iterator[Sound]:
    import datasets

    wanted = f"{VERSION}/{SPLITS[split]}/*.parquet"
    with from_the_hub(name, _allowed()):
        rows = datasets.load_dataset(name, data_files={split: wanted}, revision=CONVERTED, split=split)
        names = rows.features["label"].names
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
    for number, row in enumerate(rows, 1):
        yield from _row(f"{name} {split}", number, row, names, classes)


def _row(where: str, number: int, row: dict[str, Any], names: list[str], classes: tuple[str, ...]) -> Iterator[Sound]:
    """A row of a table, unless its class is none of ours, such as silence."""
    label = row["label"]
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise bad(where, number, f"label {shown(label)}", f"0 to {len(names) - 1}")
    if names[label] in classes:
        yield Sound(where, number, (row["audio"] or {}).get("bytes") or b"", classes.index(names[label]))


def _allowed() -> str:
    return (
        f"{HUB} or another data set of the hub, a folder with one folder a word and {' and '.join(LISTS.values())} "
        "(speech_commands_v0.02.tar.gz, unpacked), or a folder of .parquet files"
    )
