"""The cache: an entry is whole or not there, whoever dies, and one however many make it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sequence.data.cache import MANIFEST, cached, source_key

SLOW = """
import sys, time
from pathlib import Path
from sequence.data.cache import cached

def make(folder):
    with open(Path(sys.argv[1]) / "made", "a") as log:
        print("x", file=log, flush=True)
    for part in range(4):
        (folder / f"{part}.bin").write_bytes(bytes([part]) * 1000)
        time.sleep(float(sys.argv[2]))

entry = cached("slow", {}, make, sys.argv[1])
assert sorted(f.name for f in entry.folder.iterdir()) == ["0.bin", "1.bin", "2.bin", "3.bin", "entry.json"]
print(entry.digest)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SLOW, str(folder), str(seconds)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def left(folder: Path) -> list[str]:
    """What stands in a cache besides the files of locks."""
    return sorted(f.name for f in folder.iterdir() if not f.name.endswith(".lock") and f.name != "made")


def write(folder: Path) -> dict[str, int]:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.bin").write_bytes(b"abc")
    return {"rows": 3}


def test_two_processes_end_with_one_entry(tmp_path: Path) -> None:
    both = [start(tmp_path, 0.6), start(tmp_path, 0.6)]
    ended = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert ended[0][0] == ended[1][0] and (tmp_path / "made").read_text() == "x\n"
    assert "another process prepares" in ended[0][1] + ended[1][1] and len(left(tmp_path)) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_dies_leaves_no_entry(how: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, 30)
    until = time.monotonic() + 30
    while not list(tmp_path.glob(".*.partial/0.bin")) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.communicate(timeout=30)
    assert left(tmp_path) == ([".slow-44136fa355b3678a.partial"] if how == signal.SIGKILL else [])
    entry = cached("other", {}, write, str(tmp_path))
    assert left(tmp_path) == [entry.folder.name]


def test_an_error_leaves_no_entry_and_comes_through(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "a").write_bytes(b"a")
        raise KeyError("row 7")

    with pytest.raises(KeyError, match="row 7"):
        cached("fails", {}, fails, str(tmp_path))
    assert left(tmp_path) == []


@pytest.mark.parametrize("damage", ["changed", "gone", "manifest", "no manifest"])
def test_what_is_damaged_is_made_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = cached("data", {"seed": 0}, write, str(tmp_path))
    assert cached("data", {"seed": 0}, lambda folder: pytest.fail("it is there"), str(tmp_path)) == first
    file, manifest = first.folder / "sub" / "a.bin", first.folder / MANIFEST
    if damage == "changed":
        file.write_bytes(b"abd")
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.unlink()
    again = cached("data", {"seed": 0}, write, str(tmp_path))
    assert again == first and file.read_bytes() == b"abc" and again.facts == {"rows": 3}
    said = capsys.readouterr().err
    assert str(manifest if "manifest" in damage else file) in said and "made again" in said


def test_another_key_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "named"))
    source = tmp_path / "source.tsv"
    source.write_text("a")
    one = cached("data", {"sources": source_key(source)}, write)
    source.write_text("ab")
    two = cached("data", {"sources": source_key(source)}, write)
    assert one.folder != two.folder and one.digest == two.digest and one.folder.parent == tmp_path / "named"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache: .*file cannot be written: .*--task.cache FOLDER.*MATMIX_CACHE"):
        cached("data", {}, write, str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="no-source"):  # an error of the source is not one of the cache
        cached("data", {}, lambda folder: open(tmp_path.parent / "no-source").close(), str(tmp_path / "cache"))
