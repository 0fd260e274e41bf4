"""Files in the published formats: what is read, and what is said of every kind of damage."""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sequence.data import aan_sets, listops_sets, reviews_sets
from sequence.data.release import URL
from sequence.tasks.classes import TokenSettings
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text
from tests.sequence import written

TASKS: dict[str, tuple[type, Callable[..., Path]]] = {
    "listops": (ListOps, written.listops),
    "text": (Text, written.reviews),
    "retrieval": (Retrieval, written.papers),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MATMIX_WORKERS", "0")
    for kept in (listops_sets.from_files, reviews_sets.prepared, reviews_sets.divided, aan_sets.prepared):
        kept.cache_clear()  # one process reads a path once


def edit(file: Path, line: int, change: Callable[[bytes], bytes]) -> None:
    """Change a line (from 1), of a file that may be packed."""
    packed = file.suffix == ".gz"
    lines = (gzip.decompress(file.read_bytes()) if packed else file.read_bytes()).splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    content = b"".join(lines)
    file.write_bytes(gzip.compress(content) if packed else content)


# ------------------------------------------------------------------ damage

LISTS, REVIEWS, PAPERS = "basic_train.tsv", "imdb_train.csv.gz", "new_aan_pairs.eval.tsv"
DAMAGE: list[tuple[str, str, int, Callable[[bytes], bytes], str]] = [
    # task, file, line, what becomes of it, what is said
    ("listops", LISTS, 1, lambda line: b"( [MAX 1 )\t1\n", "the header is .*allowed: Source and Target"),
    ("listops", LISTS, 3, lambda line: line.replace(b"\t", b" "), "1 columns; allowed: 2"),
    ("listops", LISTS, 4, lambda line: line.replace(b"[M", b"[N", 1), r"the token '\[N\w+'; allowed: 0 1 .*\[SM"),
    ("listops", LISTS, 5, lambda line: line.rstrip() + b"x\r\n", "Target '.x'; allowed: a digit"),
    ("listops", LISTS, 6, lambda line: b"( [MAX 1 2 ]\t1\n", "Target 1; allowed: 2, which is the value"),
    ("listops", LISTS, 7, lambda line: b"[MAX 1 2\t2\n", "1 lists are not closed; allowed: one whole list"),
    ("listops", LISTS, 8, lambda line: b"\t2\n", "it has no token; allowed: .*at least one number"),
    ("listops", LISTS, 9, lambda line: b"\xff" + line, "the byte 0xff at 0 is no text; allowed: UTF-8"),
    ("text", REVIEWS, 1, lambda line: b"id,text\n", "the columns are 'id, text'; allowed: .*text and label"),
    ("text", REVIEWS, 3, lambda line: b"7,2,5,a film\n", "label '2'; allowed: 0 .negative. or 1 .positive."),
    ("text", REVIEWS, 4, lambda line: b"7,1,5,\n", "text ''; allowed: a text of at least one character"),
    ("text", REVIEWS, 5, lambda line: b"7,1,a film\n", "3 columns; allowed: 4, as in the header"),
    ("text", REVIEWS, 6, lambda line: b"7,1,5,\xe9t\xe9\n", "the byte 0xe9 at 6 is no text; allowed: UTF-8"),
    ("retrieval", PAPERS, 2, lambda line: line.replace(b"\t", b",", 1), "4 columns; allowed: 5 with tabs between"),
    ("retrieval", PAPERS, 3, lambda line: b"2.0" + line[3:], "label '2.0'; allowed: 0, 1, 0.0, 1.0"),
    ("retrieval", PAPERS, 4, lambda line: b"1.0\tP1\tP2\t\ttree\n", "text1 is empty .*P1, P2.*allowed: at least one"),
    ("retrieval", PAPERS, 5, lambda line: line[:-1] + b"\xff\n", "the byte 0xff at .* is no text; allowed: UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "line", "change", "message"), DAMAGE, ids=lambda value: str(value)[:12])
def test_damage_has_its_file_and_line(
    name: str, file: str, line: int, change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    cls, write = TASKS[name]
    folder = write(tmp_path / "data")
    edit(folder / file, line, change)
    where = rf"data: {re.escape(str(folder / file))}, line {line}: {message}"
    with pytest.raises(ValueError, match=where):
        cls(data=str(folder)).facts()
    assert not [f for f in (tmp_path / "cache").iterdir() if not f.name.endswith(".lock")]
    if line > 1 and "UTF-8" not in message:
        facts = cls(data=str(folder), broken="skip").facts()
        assert facts["left out as damaged"] == 1 and re.search(message, facts["the first of them"][0])


@pytest.mark.parametrize("name", TASKS)
def test_a_file_cut_short_says_where(name: str, tmp_path: Path) -> None:
    cls, write = TASKS[name]
    folder = write(tmp_path / "data")
    file = next(iter(sorted(folder.iterdir())))
    content = file.read_bytes() if file.suffix == ".gz" else gzip.compress(file.read_bytes())
    file.unlink()
    file = file.with_name(file.name.removesuffix(".gz") + ".gz")
    file.write_bytes(content[: len(content) - 20])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}, line \d+: it cannot be read on: EOFError"):
        cls(data=str(folder)).facts()


@pytest.mark.parametrize("name", TASKS)
def test_what_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    cls, write = TASKS[name]
    folder = write(tmp_path / "data")
    with pytest.raises(ValueError, match=r"data: .*(no folder|there is no).*allowed: "):
        cls(data=str(tmp_path / "dat")).facts()
    next(iter(sorted(folder.iterdir()))).unlink()
    with pytest.raises(ValueError, match=r"data: .*has no .*allowed: "):
        cls(data=str(folder)).facts()
    for file in folder.iterdir():
        file.write_bytes(b"")
    (folder / "imdb_test.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="data: "):
        cls(data=str(folder)).facts()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": 1, "specials": ("pad", "eos")}, "length must be at least 2 with 'eos'"),
        ({"pad": "none"}, "pad must be 'batch'.* got 'none'"),
        ({"specials": ("eos",)}, "specials: eos; allowed: pad and any of"),
        ({"specials": ("pad", "bos")}, "specials: pad bos; allowed: pad and any of unk, eos, mask"),
        ({"broken": "ignore"}, "broken: 'ignore'; allowed: 'stop' or 'skip'"),
    ],
)
def test_settings_that_no_task_takes(settings: dict[str, object], message: str) -> None:
    for cls, _ in TASKS.values():
        with pytest.raises(ValueError, match=message):
            cls(**settings)


def test_settings_that_one_task_does_not_take() -> None:
    for wrong, message in (
        (lambda: ListOps(max_args=1), "max_args must be at least 2"),
        (lambda: ListOps(min_length=10, max_length=11), "no number is between 10 and 11"),
        (lambda: ListOps(train_examples=0), "train_examples must be at least 1"),
        (lambda: ListOps(longer=(1,)), "longer holds different factors of at least 2"),
        (lambda: ListOps(data="x", longer=(2,)), "longer is for lists that are drawn"),
        (lambda: Text(held_out=0.0), "held_out is a share between 0 and 1"),
        (lambda: Text(tokens="words"), "tokens: 'words'; allowed: 'bytes' or 'characters'"),
        (lambda: Retrieval(tokens="characters", specials=("pad",)), "need 'unk'"),
        (lambda: Retrieval().facts(), f"allowed: --data lra_release.gz, from {URL}"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_list_that_is_too_long_is_not_cut(tmp_path: Path) -> None:
    folder = written.listops(tmp_path)
    lines = (folder / "basic_train.tsv").read_text().splitlines()[1:]
    lengths = [len([word for word in line.split("\t")[0].split() if word not in "()"]) for line in lines]
    longest = max(lengths)
    at = 2 + lengths.index(longest)
    with pytest.raises(
        ValueError, match=rf"basic_train.tsv, line {at}: {longest} tokens; allowed: up to {longest - 1}"
    ):
        next(ListOps(data=str(folder), length=longest - 1).batches("train", 4))
    next(ListOps(data=str(folder), length=longest).batches("train", 4))
    with pytest.raises(ValueError, match=f"allowed: up to {longest - 1}"):
        next(ListOps(data=str(folder), length=longest, specials=("pad", "eos")).batches("train", 4))


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
    archive = tmp_path / "lra_release.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted((tmp_path / "plain").iterdir()):
            tar.add(file, f"lra_release/lra_release/listops-1000/{file.name}")
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


def pack(archive: Path, folder: Path, names: list[str]) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.add(folder / name, f"lra_release/lra_release/tsv_data/{name}")
    return archive


def test_papers_from_the_packed_release_are_those_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.papers(tmp_path / "data")
    one = Retrieval(data=str(folder), length=20)
    names = [f"new_aan_pairs.{part}.tsv" for part in ("test", "train", "eval")]
    (folder / "other.txt").write_text("x" * 3000)
    archive = pack(tmp_path / "lra_release.gz", folder, ["other.txt", *names])
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


@pytest.mark.parametrize("kind", ["page", "packed text", "cut", "changed", "other", "empty"])
def test_a_wrong_archive_is_said(kind: str, tmp_path: Path) -> None:
    folder = written.papers(tmp_path / "data", (400, 40, 40))
    names = sorted(file.name for file in folder.iterdir())
    archive = pack(tmp_path / "lra_release.gz", folder, names)
    content = archive.read_bytes()
    if kind == "other":
        pack(archive, folder, names[:1])
    else:
        wrong = {
            "page": b"<html>404</html>" * 99, "packed text": gzip.compress(b"text" * 999), "empty": b"",
            "cut": content[: len(content) // 2], "changed": content[:2000] + b"\0" * 99 + content[2099:],
        }  # fmt: skip
        archive.write_bytes(wrong[kind])
    expected = {
        "page": "is no tar archive", "packed text": "is no tar archive", "empty": "is no tar archive",
        "cut": "is damaged or cut short|cannot be read on", "changed": "is damaged or cut short|cannot be read on",
        "other": r"holds no new_aan_pairs.test.tsv, new_aan_pairs.train.tsv, but lra_release/.*eval.tsv",
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"data: .*lra_release.gz.*({expected[kind]}).*allowed: "):
        Retrieval(data=str(archive)).facts()
    assert not [f for f in (tmp_path / "cache").iterdir() if not f.name.endswith(".lock")]


def test_quotation_marks_are_text_or_not(tmp_path: Path) -> None:
    """As the readers of 2020 and of Hugging Face have it: in the latter an open mark joins lines, up to the next."""
    folder = written.papers(tmp_path)
    row = '1.0\tP1\tP2\t"a ""b"" c"\td "e"\n'
    for file in folder.iterdir():
        file.write_text(row * 3)
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
