"""A disk that is full at any operation: the run fails and says so, the study goes on; with room it ends the same."""

from __future__ import annotations

import builtins
import errno
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matmix.experiments import cli
from matmix.experiments.report import write_report
from matmix.experiments.run import Result, RunConfig, execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from tests.campaigns.processes import leftovers, whole
from tests.experiments.synthetic import write_study

OPTIONS = {"patch": 4, "dim": 4, "depth": 1}
RECIPE = {"steps": 6, "batch_size": 8, "log_every": 2, "eval_every": 3, "checkpoint_every": 2, "eval_batch_size": 1024}
CONFIG = RunConfig("digits", "pooling", 0, OPTIONS, RECIPE)
WRITING = ((os, "fsync"), (os, "replace"), (Path, "rename"), (Path, "mkdir"), (builtins, "open"))


@contextmanager
def full(root: Path, first: int, last: int | None, code: int = errno.ENOSPC) -> Iterator[list[int]]:
    """From the `first` writing operation below a folder to the `last` one (None: for good) there is no room. Yields how
    many there were."""
    seen = [0]

    def limited(real: Any, name: str) -> Any:
        def operate(*args: Any, **options: Any) -> Any:
            if name == "open" and (not set(str((*args, "r", "r")[1])) & set("wax")):
                return real(*args, **options)
            where = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[0])
            if str(root) not in where:
                return real(*args, **options)
            seen[0] += 1
            if first <= seen[0] <= (10**9 if last is None else last):
                raise OSError(code, os.strerror(code))
            return real(*args, **options)

        return operate

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in WRITING:
            patch.setattr(owner, name, limited(getattr(owner, name), name))
        yield seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Any, int]:
    """What the run leaves, and how many operations it writes with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with full(folder, 0, -1) as seen:
        assert execute(CONFIG, folder).status == "finished"
    return whole(folder), seen[0]


def attempts(count: int, quick: bool) -> list[tuple[int, int | None]]:
    """Every operation, alone and as the first of all that follow; or a few of these."""
    every = [(n, last) for n in range(1, count + 1) for last in (n, None)]
    return random.Random(0).sample(every, 5) if quick else every


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.large)])
def test_a_run_fails_and_goes_on_when_there_is_room(tmp_path, undisturbed, quick, capfd):
    expected, count = undisturbed
    failed = unharmed = 0
    for number, (first, last) in enumerate(attempts(count, quick)):
        folder = tmp_path / f"run-{number}"
        with full(folder, first, last, random.Random(number).choice([errno.ENOSPC, errno.EROFS, errno.EDQUOT])):
            try:
                result = execute(CONFIG, folder)
            except OSError:  # before it was begun
                result = None
        failed, unharmed = failed + (result is None or not result.done), unharmed + (result is not None and result.done)
        if result is not None and not result.done:
            assert result.status == "failed" and ("OSError" in result.error or "cannot be written" in result.error)
        if last is None:
            assert result is None or not result.done
        assert execute(CONFIG, folder).status == "finished"
        assert whole(folder) == expected and not leftovers(folder), (first, last)
        shutil.rmtree(folder)
    with capfd.disabled():
        print(f"\nfull disk: {failed} failed, {unharmed} went on, 0 lost")
    assert failed


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.large)])
def test_a_study_goes_on(tmp_path, quick):
    """No room for one run's folder; or for anything from some operation on, when the study says so in its outcome."""
    study = Study("full", (StudyTask("digits", OPTIONS, RECIPE),), ("pooling", "identity"), seeds=(0,))
    first, _ = study.runs()
    with full(tmp_path / "one" / first.folder, 1, None):
        outcome = run_study(study, tmp_path / "one", jobs=1, quiet=True)
    assert list(outcome.status.values()) == ["failed", "finished"] and "No space left" in str(outcome.errors)
    assert run_study(study, tmp_path / "one", jobs=1, quiet=True).counts == {"finished": 2}
    for begin in (8, 31) if quick else range(1, 100, 3):
        out = tmp_path / f"all-{begin}"
        with full(out, begin, None):
            try:
                outcome = run_study(study, out, jobs=1, quiet=True, worker=begin % 2 > 0)
            except OSError:  # the folder of the study cannot be made
                assert begin < 7
                continue
        assert not outcome.complete and outcome.problems and outcome.errors
        assert set(outcome.status.values()) <= {"failed", "finished"} and len(outcome.status) == 2
        assert run_study(study, out, jobs=1, quiet=True, worker=False).counts == {"finished": 2}
        assert not [name for name in leftovers(out) if ".attempt" not in name]


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path, capsys):
    levels = {"digits": {"identity": 0.5, "pooling": 0.6}}
    write_study(tmp_path, Study("told", (StudyTask("digits"),), ("identity", "pooling"), seeds=(0, 1)), levels)
    write_report(tmp_path, matrices=False, pictured=0)
    before = (tmp_path / "report" / "index.html").read_bytes()
    for begin in (1, 2, 3):
        with full(tmp_path, begin, None), pytest.raises(SystemExit) as ended:
            cli.main(["report", str(tmp_path), "--pictured", "0"])
        out, said = capsys.readouterr()
        assert ended.value.code == 2 and "No space left" in said and "Traceback" not in out + said
        assert (tmp_path / "report" / "index.html").read_bytes() == before
    assert not leftovers(tmp_path)


def test_a_command_says_what_the_system_said(tmp_path, capsys):
    """A folder whose name is too long, a file in its place: one line, and an exit status."""
    (tmp_path / "file").touch()
    for out in (tmp_path / ("x" * 300), tmp_path / "file" / "run"):
        words = ["train", "digits", "--mixer", "identity", "--steps", "1", "--task.dim", "4", "--out", str(out)]
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr().err
        assert ended.value.code in (1, 2) and said.strip().count("\n") == 0 and str(out)[-20:] in said
    assert Result.read(tmp_path / "none") is None
