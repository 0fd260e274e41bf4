"""What one tests on is not what one trains on, and a label is one of those that there are: every reader refuses a file
that stands in two splits (by a link, as a copy), and labels between or beyond the classes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sequence.data import cifar, corpus, pathfinder_sets, speech
from sequence.data.faults import BadData
from sequence.language.data import glue, texts
from sequence.series.data import anomalies, m4, ts_files
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text
from tests.sequence import written
from tests.sequence.series import tables


def _texts(folder: Path) -> Path:
    folder.mkdir()
    for number, split in enumerate(("train", "valid", "test")):
        (folder / f"{split}.txt").write_text("\n".join(written.sentences(20 + number, number)))
    return folder


def _rows(folder: Path) -> Path:
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        lines = (f'{{"text": "{text}"}}' for text in written.sentences(20, number))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def _machines(folder: Path) -> Path:
    folder.mkdir()
    with np.load(tables.recordings(folder / "waves.npz")) as found:
        for part, name in (("train", "train"), ("test", "test"), ("test_label", "label")):
            (folder / part).mkdir()
            np.savetxt(folder / part / "machine-1-1.txt", found[name], delimiter=",")
    (folder / "waves.npz").unlink()
    return folder


Reader = tuple[Callable[[Path], Path], Callable[[Path], Any], str, str]
READERS: dict[str, Reader] = {
    # what writes it, what reads it, and two files of different splits
    "listops": (written.listops, lambda at: ListOps(data=str(at)).facts(), "basic_train.tsv", "basic_test.tsv"),
    "reviews": (written.reviews, lambda at: Text(data=str(at)).facts(), "imdb_train.csv.gz", "imdb_test.csv.gz"),
    "papers": (
        written.papers, lambda at: Retrieval(data=str(at)).facts(), "new_aan_pairs.eval.tsv", "new_aan_pairs.test.tsv",
    ),
    "cifar": (written.cifar, lambda at: cifar.files_of(str(at)), "data_batch_3.bin", "test_batch.bin"),
    "cifar tables": (
        lambda at: written.cifar(at, kind="parquet"), lambda at: cifar.files_of(str(at)),
        "train-00000-of-00001.parquet", "test-00000-of-00001.parquet",
    ),
    "glue": (
        lambda at: written.glue(at, "mnli"), lambda at: glue.files_of(str(at), "mnli"),
        "MNLI/train.tsv", "MNLI/dev_mismatched.tsv",
    ),
    "texts": (_texts, lambda at: corpus.corpus(str(at), "bytes"), "train.txt", "valid.txt"),
    "tables of texts": (_rows, lambda at: texts.texts(str(at)), "train.jsonl", "validation.jsonl"),
    "cases": (tables.cases, lambda at: ts_files.load(str(at)), "Waves_TRAIN.ts", "Waves_TEST.ts"),
    "recordings": (_machines, lambda at: anomalies.load(str(at)), "train/machine-1-1.txt", "test/machine-1-1.txt"),
}  # fmt: skip


@pytest.mark.parametrize("way", ["link", "hard link", "copy"])
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_two_splits_is_refused(name: str, way: str, tmp_path: Path) -> None:
    write, read, first, second = READERS[name]
    folder = write(tmp_path / "data")
    if way == "link" and "tables" not in name:  # which need a library of seconds to be opened
        read(write(tmp_path / "whole"))
    (folder / second).unlink()
    {"link": os.symlink, "hard link": os.link, "copy": shutil.copyfile}[way](folder / first, folder / second)
    said = "the same values" if name == "recordings" else "the same, byte by byte" if way == "copy" else "one file"
    with pytest.raises(BadData, match=rf"^data: .*{said}.*; allowed: "):
        read(folder)


def test_a_name_of_two_splits_is_refused(tmp_path: Path) -> None:
    folder = written.reviews(tmp_path / "data")
    (folder / "imdb_test.csv.gz").rename(folder / "imdb_test_train.csv.gz")
    (folder / "imdb_train.csv.gz").unlink()
    with pytest.raises(BadData, match=r"are one file, and stand for train and test"):
        Text(data=str(folder)).facts()


def test_a_recording_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for word in ("high", "low"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "0_nohash_0.wav").write_bytes(b"RIFF")
    assert len(speech.sources(str(tmp_path), "folders")) == 2
    os.symlink(tmp_path / "high" / "0_nohash_0.wav", tmp_path / "low" / "1_nohash_0.wav")
    with pytest.raises(BadData, match=r"high/0_nohash_0\.wav and .*low/1_nohash_0\.wav are one file, by a link"):
        speech.sources(str(tmp_path), "folders")


def test_pictures_of_several_rows_are_counted(tmp_path: Path) -> None:
    folder = written.pathfinder(tmp_path / "data", 20)

    def read() -> dict[str, Any]:
        return pathfinder_sets.from_files.__wrapped__(str(folder), 16, 6, "stop", "take", "").facts

    assert "rows that name a picture of another row" not in read()
    table = folder / "pathfinder16" / "curv_baseline" / "metadata" / "0.npy"
    table.write_text(table.read_text() + "".join(table.read_text().splitlines(keepends=True)[:3]))
    assert read()["rows that name a picture of another row"] == 3


LABELS = (-1, 2, 0.9, np.nan, 255)


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_anomalies_are_0_or_1(label: float, tmp_path: Path) -> None:
    file = tables.recordings(tmp_path / "waves.npz")
    with np.load(file) as found:
        parts = {name: found[name].copy() for name in found}
    labels = parts["label"].astype(float)
    np.savez(file, **{**parts, "label": labels[:, None]})
    assert anomalies.load(str(file))[0].labels.sum() == 14
    labels[7] = label
    np.savez(file, **{**parts, "label": labels})
    with pytest.raises(BadData, match=r"waves: the label '.+' of step 7; allowed: 0 or 1 for each step"):
        anomalies.load(str(file))


def test_surplus_and_missing_recordings(tmp_path: Path) -> None:
    folder = _machines(tmp_path / "data")
    for part in ("test", "test_label"):
        shutil.copyfile(folder / part / "machine-1-1.txt", folder / part / "machine-1-2.txt")
    with pytest.raises(BadData, match=r"train: it has no machine-1-2\.txt"):
        anomalies.load(str(folder))
    file = tables.recordings(tmp_path / "waves.npz")
    with np.load(file) as found:
        parts = {name: found[name] for name in found}
    for wrong, message in (
        ({"label": np.stack([parts["label"]] * 2, 1)}, r"labels of shape \(200, 2\); allowed: 0 or 1 for each"),
        ({"label": parts["label"][:-1]}, "199 labels do not fit together"),
    ):
        np.savez(file, **{**parts, **wrong})
        with pytest.raises(BadData, match=message):
            anomalies.load(str(file))
    np.savez(file, **{f"a_{name}": part for name, part in parts.items()}, b_test=parts["test"])
    with pytest.raises(BadData, match="b_train"):
        anomalies.load(str(file))


def test_series_and_classes_that_are_named_twice(tmp_path: Path) -> None:
    folder = tables.cases(tmp_path / "cases")
    file = folder / "Waves_TRAIN.ts"
    file.write_text(file.read_text().replace("true up down", "true up down up"))
    with pytest.raises(BadData, match=r"it names the class .up. twice"):
        ts_files.load(str(folder))
    weekly = tmp_path / "Weekly-train.csv"
    for lines, message in ((["V1,V2", "W1,1", "W1,2"], "line 3: series W1 for the second time"),
                           (["V1,V2", "W1,1", ""], "line 3: series  has no value")):  # fmt: skip
        weekly.write_text("\n".join([*lines, ""]))
        with pytest.raises(BadData, match=message):
            m4.read(weekly)


def test_bytes_beyond_the_last_picture(tmp_path: Path) -> None:
    file = written.cifar(tmp_path / "data", 1, kind="npz") / "cifar10.npz"
    with np.load(file) as found:
        parts = {name: found[name] for name in found}
    assert len(list(cifar.read(str(file), "train"))) == 5
    for wrong in ({"jpeg_train": np.append(parts["jpeg_train"], np.uint8(0))}, {"off_train": parts["off_train"] + 1}):
        np.savez(file, **{**parts, **wrong})
        with pytest.raises(BadData, match=r"off_train does not divide the bytes; allowed: 6 numbers that rise, from 0"):
            list(cifar.read(str(file), "train"))


@pytest.mark.parametrize("label", (*LABELS[:4], 1.0, True, None, "1"))
def test_labels_of_the_hub_are_numbers_of_classes(label: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    row = {"premise": "a cat", "hypothesis": "it ran", "label": label}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": [row]})
    (found,) = glue.read("nyu-mll/glue", "mnli", "train")
    if label == 2 and not isinstance(label, bool):
        assert isinstance(found, glue.Example) and found.label == 2
    else:
        assert isinstance(found, BadData) and "label" in str(found)
