"""Processes that are at work in one folder at once: none fails by it, and what they leave is whole."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from matmix.folders import sweep, temporary
from tests.campaigns.processes import RUN, leftovers, report, start, study, timed, train, whole
from tests.campaigns.test_kills import pages
from tests.experiments.synthetic import write_study

QUICK = {**RUN["recipe"], "steps": 4, "groups": [], "schedule": "constant"}
TWO = Study("two", (StudyTask("digits", RUN["options"], QUICK),), ("pooling", "identity"), seeds=(0, 1))


@pytest.mark.parametrize("times", [3, pytest.param(40, marks=pytest.mark.large)])
def test_reports(tmp_path, times):
    levels = {"digits": {"identity": 0.5, "attention": 0.7, "pooling": 0.6}}
    write_study(tmp_path, Study("told", (StudyTask("digits"),), tuple(levels["digits"]), seeds=(0, 1, 2)), levels)
    timed(report, str(tmp_path))
    expected = pages(tmp_path)
    children = [start(report, str(tmp_path), times) for _ in range(3)]
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert pages(tmp_path) == expected and not leftovers(tmp_path)


def test_studies_that_end_together(tmp_path):
    """Each run is done by one of them; both write the report, the index and their notes."""
    words = TWO.to_json()
    children = [start(study, words, str(tmp_path / "out"), 1) for _ in range(2)]
    for child in children:
        child.join(240)
    assert 0 in [child.exitcode for child in children]  # a run that the other held for too long is refused
    assert run_study(TWO, tmp_path / "out", jobs=1, quiet=True).counts == {"finished": 4}
    run_study(TWO, tmp_path / "alone", jobs=1, quiet=True)
    for run in TWO.runs():
        assert whole(tmp_path / "out" / run.folder) == whole(tmp_path / "alone" / run.folder)
    assert len(list((tmp_path / "out" / "sessions").glob("*.json"))) == 3 and not leftovers(tmp_path / "out")
    assert (tmp_path / "out" / "report" / "index.html").read_text().endswith("</html>\n")


def test_one_run_in_two_processes(tmp_path):
    """One does it; the other is told who holds it, or reads the result."""
    children = [start(train, RUN, str(tmp_path / "run")) for _ in range(2)]
    for child in children:
        child.join(240)
    assert 0 in [child.exitcode for child in children]
    timed(train, RUN, str(tmp_path / "run"))
    timed(train, RUN, str(tmp_path / "alone"))
    assert whole(tmp_path / "run") == whole(tmp_path / "alone")


def _leave(folder: str) -> None:
    for name in ("result.json", "study.json"):
        temporary(Path(folder) / name).write_text("half")
    (temporary(Path(folder) / "report") / "pictures").mkdir(parents=True)


def test_what_dead_processes_left_is_removed(tmp_path):
    """By the next start; what is of a living process, of another machine or of somebody else stays."""
    timed(_leave, str(tmp_path))
    assert len(leftovers(tmp_path)) == 3
    kept = [temporary(tmp_path / "result.json"), tmp_path / ".tmp-of-somebody", tmp_path / ".tmp-x-00000000-1-12345678"]
    for path in kept:
        path.touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in kept)


@pytest.mark.parametrize("where", ["", "runs/digits/identity/seed-0", "sessions"])
def test_a_start_sweeps_all_its_folders(tmp_path, where):
    one = Study("two", TWO.tasks, ("identity",), seeds=(0,))
    assert run_study(one, tmp_path, jobs=1, quiet=True).complete
    (tmp_path / one.runs()[0].folder / "result.json").unlink()
    child = multiprocessing.get_context("fork").Process(target=_leave, args=(str(tmp_path / where),))
    child.start()
    child.join()
    assert len(leftovers(tmp_path)) == 3
    assert run_study(one, tmp_path, jobs=1, quiet=True).complete
    assert not leftovers(tmp_path)
