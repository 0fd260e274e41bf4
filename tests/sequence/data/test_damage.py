"""What is said of damaged files: every kind has its file, line, value, and what is allowed."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sequence.data.release import URL
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text
from tests.sequence import written
from tests.sequence.written import edit, pack

TASKS: dict[str, tuple[type, Callable[..., Path]]] = {
    "listops": (ListOps, written.listops),
    "text": (Text, written.reviews),
    "retrieval": (Retrieval, written.papers),
}

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
        ({"length": 0}, r"length must be a whole number in \[1, 1e\+09\], got 0"),
        ({"length": 1, "specials": ("pad", "eos")}, "length must be at least 2 with 'eos'"),
        ({"pad": "none"}, "pad must be one of 'batch'.* got 'none'"),
        ({"specials": ("eos",)}, "specials must be pad and any of .* got .'eos',"),
        ({"specials": ("pad", "bos")}, "specials must be pad and any of unk, eos, mask.* got .'pad', 'bos'"),
        ({"broken": "ignore"}, "broken must be one of 'stop', 'skip', got 'ignore'"),
    ],
)
def test_settings_that_no_task_takes(settings: dict[str, object], message: str) -> None:
    for cls, _ in TASKS.values():
        with pytest.raises(ValueError, match=message):
            cls(**settings)


def test_settings_that_one_task_does_not_take() -> None:
    for wrong, message in (
        (lambda: ListOps(max_args=1), r"max_args must be a whole number in \[2, "),
        (lambda: ListOps(min_length=10, max_length=11), r"max_length must be at least min_length \+ 2 = 12, .* got 11"),
        (lambda: ListOps(train_examples=0), "train_examples must be a whole number in"),
        (lambda: ListOps(longer=(1,)), r"longer must be a tuple, each a whole number in \[2, "),
        (lambda: ListOps(longer=(2, 2)), "longer must be different factors"),
        (lambda: ListOps(data="x", longer=(2,)), "longer is for lists that are drawn"),
        (lambda: Text(held_out=0.0), r"held_out must be a finite number in \(0, 1\)"),
        (lambda: Text(tokens="words"), "tokens must be one of 'bytes', 'characters', got 'words'"),
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


@pytest.mark.parametrize("kind", ["page", "packed text", "cut", "changed", "other", "empty"])
def test_a_wrong_archive_is_said(kind: str, tmp_path: Path) -> None:
    folder = written.papers(tmp_path / "data", (400, 40, 40))
    files = sorted(folder.iterdir())
    archive = pack(tmp_path / "lra_release.gz", files, "tsv_data")
    content = archive.read_bytes()
    if kind == "other":
        pack(archive, files[:1], "tsv_data")
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
