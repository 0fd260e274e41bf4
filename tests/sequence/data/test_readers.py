"""Files in the published formats: what is read, and which ids come out."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from sequence.data import aan_sets, reviews_sets
from sequence.tasks.classes import TokenSettings
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text
from tests.sequence import written
from tests.sequence.written import pack

# ------------------------------------------------------------------ formats


def rows(task: TokenSettings, split: str = "train") -> list[list[int]]:
    found = next(task.batches(split, 10)) if split == "train" else next(iter(task.batches(split, 1000)))
    return [row[real].tolist() for row, real in zip(found.x, found.mask, strict=True)]


def test_lists_quoted_or_not_packed_or_not_are_the_same(tmp_path: Path) -> None:
    plain = ListOps(data=str(written.listops(tmp_path / "plain")))
    quoted = written.listops(tmp_path / "quoted", quoted=True)
    assert (quoted / "basic_val.tsv").read_text().startswith('"Source"\t"Target"')
    inner = tmp_path / "release" / "lra_release" / "lra_release" / "listops-1000"
    for file in written.listops(inner).iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    archive = pack(tmp_path / "lra_release.gz", sorted((tmp_path / "plain").iterdir()), "listops-1000")
    for other in (quoted, tmp_path / "release", archive):
        task = ListOps(data=str(other))
        assert rows(task) == rows(plain) and task.facts()["checksum"] == plain.facts()["checksum"]
    # A row of the file, by hand: 0 is padding, then 0 to 9 are 1 to 10, X 11, [MAX 12, [MED 13, [MIN 14, [SM 15.
    source, target = (tmp_path / "plain" / "basic_test.tsv").read_text().splitlines()[1].split("\t")
    ids = {"]": 11, "[MAX": 12, "[MED": 13, "[MIN": 14, "[SM": 15}
    batch = next(iter(plain.batches("test", 1)))
    assert batch.x[0].tolist() == [ids.get(w) or int(w) + 1 for w in source.split() if w not in "()"]
    assert batch.y.tolist() == [int(target)]


def test_reviews_of_every_format_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pandas

    folder = written.reviews(tmp_path / "csv")
    frames = {split: pandas.read_csv(folder / f"imdb_{split}.csv.gz") for split in ("train", "test")}
    other = tmp_path / "hub" / "plain_text"
    other.mkdir(parents=True)
    for split, frame in frames.items():
        half = len(frame) // 2
        for part, rows_ in enumerate((frame[:half], frame[half:])):
            rows_[["text", "label"]].to_parquet(other / f"{split}-{part:05}-of-00002.parquet")
    frames["train"][["text", "label"]].to_parquet(other / "unsupervised-00000-of-00001.parquet")
    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_pandas(frames[split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    one = Text(data=str(folder))
    for data in (str(other.parent), "stanfordnlp/imdb"):
        task = Text(data=data)
        assert rows(task) == rows(one) and task.facts()["checksum"] == one.facts()["checksum"]
    assert asked == [("stanfordnlp/imdb", "train"), ("stanfordnlp/imdb", "test")]
    assert bytes(token - 1 for token in rows(one, "test")[0]).decode() == frames["test"].text[0]
    (other / "train.csv").write_text("text,label\n")
    reviews_sets.prepared.cache_clear()
    with pytest.raises(ValueError, match=r"has train in several formats.*allowed: one format"):
        Text(data=str(other.parent)).facts()


def test_a_hub_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, split: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        ValueError, match=r"stanfordnlp/imdb cannot be opened: ConnectionError: no route; allowed: .*csv"
    ):
        Text().facts()


def test_papers_from_the_packed_release_are_those_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.papers(tmp_path / "data")
    one = Retrieval(data=str(folder), length=20)
    names = [f"new_aan_pairs.{part}.tsv" for part in ("test", "train", "eval")]
    (folder / "other.txt").write_text("x" * 3000)
    archive = pack(tmp_path / "lra_release.gz", [folder / name for name in ("other.txt", *names)], "tsv_data")
    monkeypatch.setenv("MATMIX_WORKERS", "2")
    packed = Retrieval(data=str(archive), length=20)
    for split in ("train", "val", "test"):
        a, b = (next(iter(task.batches(split, 16, seed=3))) for task in (one, packed))
        assert torch.equal(a.x, b.x) and torch.equal(a.mask, b.mask) and torch.equal(a.y, b.y)
    assert Retrieval(data=str(folder)).facts()["papers"] == 12 and a.x.shape[1:] == (2, 20)
    line = (folder / names[2]).read_text().splitlines()[0].split("\t")
    first = next(iter(one.batches("val", 1)))
    texts = [bytes(row[real].sub(1).tolist()) for row, real in zip(first.x[0], first.mask[0], strict=True)]
    assert texts == [text.encode()[:20] for text in line[3:]] and first.y.tolist() == [int(float(line[0]))]


def test_quotation_marks_are_text_or_not(tmp_path: Path) -> None:
    """As the readers of 2020 and of Hugging Face have it: in the latter an open mark joins lines, up to the next."""
    folder = written.papers(tmp_path)
    row = '1.0\tP1\tP2\t"a ""b"" c"\td "e"\n'
    for number, file in enumerate(folder.iterdir()):
        file.write_text(row * (3 + number))  # no two splits are the same file
    for quoting, expected in ((False, ['"a ""b"" c"', 'd "e"']), (True, ['a "b" c', 'd "e"'])):
        batch = next(iter(Retrieval(data=str(folder), quoting=quoting).batches("val", 1)))
        texts = [bytes(x[real].sub(1).tolist()).decode() for x, real in zip(batch.x[0], batch.mask[0], strict=True)]
        assert texts == expected
    aan_sets.prepared.cache_clear()
    (folder / "new_aan_pairs.eval.tsv").write_text(row + '1.0\tP1\tP2\t"open\ttext\n' + row)
    merged, whole = (Retrieval(data=str(folder), quoting=quoting).facts()["val"]["pairs"] for quoting in (True, False))
    assert (merged, whole) == (2, 3)


# ------------------------------------------------------------------ ids


def test_characters_have_a_vocabulary_of_the_training_texts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text("label,text\n" + "0,abcab\n1,bbé\n" * 9 + "0,abcd\n1,ébb\n")
    (folder / "test.csv").write_text("label,text\n0,aéz\n1,cab\n")
    task = Text(data=str(folder), tokens="characters", length=4, min_frequency=10, held_out=0.4)
    # Cut to 3 characters and an end, there are 30 b, 10 each of a, c and é, and no d.
    assert task.vocabulary().words() == ["<pad>", "<unk>", "<eos>", "b", "a", "c", "é"]
    assert rows(task, "test") == [[4, 6, 1, 2], [5, 4, 3, 2]]
    rare = Text(
        data=str(folder), tokens="characters", length=4, min_frequency=11, specials=("mask", "pad", "unk", "eos")
    )
    assert rare.vocabulary().words() == ["<mask>", "<pad>", "<unk>", "<eos>", "b"]
    assert rows(rare, "test") == [[2, 2, 2, 3], [2, 2, 4, 3]]
    batch = next(iter(Text(data=str(folder), length=9, pad="length").batches("test", 2)))
    assert batch.x.tolist()[1] == [100, 98, 99, 0, 0, 0, 0, 0, 0] and batch.mask.sum(1).tolist() == [4, 3]


def test_held_out_reviews_are_the_same_wherever_they_stand(tmp_path: Path) -> None:
    """Drawn by their text: in whatever order, equal texts on one side, a share of each class, another for a seed."""
    texts = [(number % 2, f"text {number // 3}") for number in range(300)]
    source = np.random.default_rng(0)
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = [f"{label},{text}\n" for label, text in texts]
        source.shuffle(lines)
        (tmp_path / name / "train.csv").write_text("label,text\n" + "".join(lines))
        (tmp_path / name / "test.csv").write_text("label,text\n0,text 3\n1,new\n")
        task = Text(data=str(tmp_path / name), held_out=0.2)
        val, train = ({bytes(row) for row in rows_of(task, split)} for split in ("val", "train"))
        assert not val & train and len(val | train) == 100
        assert len(rows_of(task, "val")) == pytest.approx(60, abs=6)
        found.append(val)
    assert found[0] == found[1]
    assert {bytes(row) for row in rows_of(Text(data=str(tmp_path / "one"), held_out=0.2, split_seed=1), "val")} != val
    assert task.facts()["test texts that are in training too"] == 1
    published = Text(data=str(tmp_path / "one"), test_as_validation=True)
    assert rows_of(published, "val") == rows_of(published, "test") and len(rows_of(published, "train")) == 300
    assert "as published" in published.facts()["validation"] and "validation is the test set" in published.found()


def rows_of(task: Text, split: str) -> list[list[int]]:
    found = task.labelled(split).rows
    return [found[index].tolist() for index in range(len(found))]
