"""`matmix data lra --check FOLDER`, as a user meets it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from matmix.experiments.cli import main
from sequence.data import check
from tests.sequence import written
from tests.sequence.written import edit, pack


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["data", *words])
    return (done.value.code, *capsys.readouterr())


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_WORKERS", "0")
    monkeypatch.setattr(check, "PARTS", {name: check.PARTS[name] for name in ("listops", "text", "retrieval")})


def test_what_can_be_checked_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = say(capsys)
    assert status == 0 and re.search(r"^lra +The data of the Long Range Arena", out, re.M)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lro", "--check", "."), "unknown data sets 'lro'; did you mean lra?"),
        (("lra",), "say where to look: matmix data lra --check FOLDER"),
        (("lra", "--check", "no-such-folder"), "there is no folder no-such-folder"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = say(capsys, *words)
    assert status == 2 and message in error


def test_an_empty_folder_lacks_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert status == 1 and len(out.splitlines()) == 3
    assert re.search(r"listops +missing +basic_train.tsv, .*listops-1000 of lra_release.gz, https://.*drawn", out)
    assert re.search(r"text +missing +.*stanfordnlp/imdb", out)
    assert re.search(r"retrieval +missing +new_aan_pairs.train.tsv, .*tsv_data of lra_release.gz .8 GB", out)


def test_what_is_there_is_read_row_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sizes of what is written for the published ones, all is found; then damage is, wherever it is."""
    release = tmp_path / "lra_release" / "lra_release"
    written.listops(release / "listops-1000")
    written.reviews(tmp_path / "aclImdb")
    written.papers(release / "tsv_data")
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert status == 0 and len(re.findall(r"^\w+ +note +.*sound rows; the published file has", out, re.M)) == 8
    for name in ("listops_files", "aan"):
        monkeypatch.setattr(f"sequence.data.{name}.ROWS", {"train": 64, "val": 16, "test": 16})
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert len(re.findall(r"^\w+ +found +.*/\w+.*, (64|16) sound rows$", out, re.M)) == 6

    for line in range(2, 10):
        edit(release / "listops-1000" / "basic_val.tsv", line, lambda line: b"[MAX\t1\n")
    edit(tmp_path / "aclImdb" / "imdb_test.csv.gz", 1, lambda line: b"a,b\n")
    edit(release / "tsv_data" / "new_aan_pairs.eval.tsv", 5, lambda line: b"1\tP1\n")
    (release / "tsv_data" / "new_aan_pairs.test.tsv").unlink()
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert status == 1
    for line in range(2, 7):
        assert re.search(rf"listops +damaged +.*basic_val.tsv, line {line}: 1 lists are not closed; allowed", out)
    assert "line 7" not in out and re.search(r"listops +damaged +3 rows more", out)
    assert re.search(r"text +damaged +.*imdb_test.csv.gz, line 1: the columns are 'a, b'", out)
    assert re.search(r"retrieval +damaged +.*eval.tsv, line 5: 2 columns; allowed: 5", out)
    assert re.search(r"retrieval +missing +new_aan_pairs.test.tsv: get", out)


def test_the_packed_release_is_read_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written.papers(tmp_path / "data")
    pack(tmp_path / "lra_release.gz", sorted(folder.iterdir()), "tsv_data")
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert len(re.findall(r"retrieval +note +.*lra_release.gz:lra_release/.*sound rows", out)) == 3
    assert re.search(r"listops +damaged +.*lra_release.gz holds no basic_test.tsv.*allowed", out)
    archive = tmp_path / "lra_release.gz"
    archive.write_bytes(archive.read_bytes()[:200])
    status, out, _ = say(capsys, "lra", "--check", str(tmp_path))
    assert status == 1 and re.search(
        r"retrieval +damaged +.*lra_release.gz is damaged or cut short .at 200 of 200", out
    )
