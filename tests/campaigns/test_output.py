"""Where the output goes decides nothing: a closed pipe, a full disk or no stream at all, and the run is done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from matmix.experiments import cli
from matmix.experiments.folder import Result
from matmix.experiments.output import Steady, steady
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from tests.forked import SERVER

SMALL = ["--task.patch", "4", "--task.dim", "4", "--task.depth", "1", "--recipe.batch-size", "8", "--recipe.eval-every",
         "2"]  # fmt: skip
TRAIN = ["train", "digits", "--mixer", "identity", "--steps", "4", *SMALL]
STUDY = ["study", "digits", "--mixers", "identity", "pooling", "--seeds", "1", "--recipe.steps", "2", *SMALL]


def to_nobody() -> None:
    """stdout is a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def to_a_full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def closed() -> None:
    os.close(1)
    sys.stdout = None


def no_stderr() -> None:
    os.close(2)
    sys.stderr = None


def full_stderr() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


ENDS: dict[Callable[[], None], int] = {to_nobody: 141, to_a_full_disk: 1, closed: 1, no_stderr: 0, full_stderr: 0}


def _child(words: list[str], spoil: Callable[[], None], log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    spoil()
    cli.main(words)


def run(words: list[str], spoil: Callable[[], None], log: Path) -> int | None:
    child = SERVER.Process(target=_child, args=(words, spoil, str(log)))
    child.start()
    child.join(500)
    return child.exitcode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("spoil", ENDS)
def test_training_ends_and_is_recorded(tmp_path, spoil):
    status = run([*TRAIN, "--out", str(tmp_path / "run")], spoil, tmp_path / "log")
    result = Result.read(tmp_path / "run")
    assert result is not None and result.status == "finished", (tmp_path / "log").read_text()
    assert status == ENDS[spoil] and "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize(
    ("spoil", "jobs"), [(to_nobody, 1), *(pytest.param(one, 2, marks=pytest.mark.slow) for one in ENDS)]
)
def test_a_study_ends_and_is_reported(tmp_path, spoil, jobs):
    status = run([*STUDY, "--jobs", str(jobs), "--out", str(tmp_path / "out")], spoil, tmp_path / "log")
    assert len(list((tmp_path / "out").rglob("result.json"))) == 2
    assert (tmp_path / "out" / "report" / "index.html").exists(), (tmp_path / "log").read_text()
    assert status == ENDS[spoil] and "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("command", ["list", "--help", "train digits --help"])
def test_every_command_ends_by_itself(tmp_path, command):
    for spoil in (to_nobody, closed):
        assert run(command.split(), spoil, tmp_path / "log") == ENDS[spoil]
        assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_shell_sees_the_end_of_a_pipe(tmp_path):
    """From the entry point: `matmix list | head -1`, and nothing on stderr."""
    code = "from matmix_command import main; main()"
    line = f"\"{sys.executable}\" -c '{code}' list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] in ("0", "141") and done.stderr == "", done


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_study_from_python_goes_on_too(tmp_path, monkeypatch):
    """`run_study` in a process whose stdout is full, without the command line."""
    monkeypatch.setattr(sys, "stdout", Broken())
    recipe = {"steps": 1, "eval_every": 1, "batch_size": 4}
    study = Study("s", (StudyTask("digits", {"dim": 4, "depth": 1}, recipe),), ("identity",), seeds=(0,))
    assert run_study(study, tmp_path, jobs=1).counts == {"finished": 1}
    assert isinstance(sys.stdout, Broken)


def test_what_cannot_be_encoded_is_shown_as_a_code():
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("\u03c0 \ud800\n")
    stream.flush()
    assert raw.getvalue() == b"\\u03c0 \\ud800\n" and not stream.lost


def test_streams_are_given_back(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken())
    before = sys.stdout, sys.stderr
    with steady() as out:
        print("lost")
        with steady() as same:
            assert same is out
        assert isinstance(sys.stderr, Steady) and out.lost and out.error.errno == 28
    assert (sys.stdout, sys.stderr) == before
