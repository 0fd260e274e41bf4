"""Killed at any moment, and started again: nothing is lost, and nothing is other than of what was never disturbed."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from matmix.experiments import runner
from matmix.experiments.checkpoint import save_checkpoint
from matmix.experiments.report.collect import collect
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from tests.campaigns.processes import RUN, Figures, leftovers, report, start, strike, study, timed, train, whole
from tests.experiments.synthetic import write_study

SHORT = {**RUN["recipe"], "steps": 12, "groups": [], "schedule": "constant"}
SMALL_STUDY = Study(
    "killed",
    (StudyTask("digits", RUN["options"], SHORT),),
    ("pooling", "identity", "attention(head_dim=4)"),
    seeds=(0, 1),
)


def several(quick: int, many: int) -> list:
    return [quick, pytest.param(many, marks=pytest.mark.large)]


@pytest.mark.parametrize("kills", several(1, 130))
def test_training(tmp_path, kills):
    dice, seen = random.Random(kills), Figures()
    took = timed(train, RUN, str(tmp_path / "whole"))
    expected = whole(tmp_path / "whole")
    chain = 0
    while seen.killed < kills:
        folder, chain = tmp_path / f"chain-{chain}", chain + 1
        for _ in range(min(dice.randint(1, 8), kills - seen.killed)):
            before = (folder / "checkpoints").is_dir()
            child = start(train, RUN, str(folder))
            killed = strike(child, dice.uniform(0.2, 1.1) * took, dice)
            child.join(60)
            seen.killed, seen.resumed = seen.killed + killed, seen.resumed + before
            if not killed:
                break
        count(seen, folder, expected, lambda folder=folder: timed(train, RUN, str(folder)))
        shutil.rmtree(folder)
    print(f"\ntraining: {seen}")
    assert (seen.lost, seen.wrong) == (0, 0) and seen.killed == kills


def count(seen: Figures, folder: Path, expected: object, end) -> None:
    """Let it end, and compare."""
    try:
        end()
    except AssertionError as error:
        print(f"{folder}: {error}")
        seen.lost += 1
        return
    if whole(folder) != expected or leftovers(folder):
        print(f"{folder}: {leftovers(folder)}")
        seen.wrong += 1


@pytest.mark.large
def test_studies_with_two_workers(tmp_path, kills=30):
    """The study, one of its workers or all of them; killed runs are in hands of a start that comes at once."""
    dice, seen = random.Random(7), Figures()
    words = SMALL_STUDY.to_json()
    took = timed(study, words, str(tmp_path / "whole"), 2)
    folders = [run.folder for run in SMALL_STUDY.runs()]
    expected = {folder: whole(tmp_path / "whole" / folder) for folder in folders}
    chain = 0
    while seen.killed < kills:
        root, chain = tmp_path / f"study-{chain}", chain + 1
        for _ in range(min(dice.randint(1, 5), kills - seen.killed)):
            child = start(study, words, str(root), 2)
            seen.resumed += (root / "study.json").exists()
            seen.killed += strike(child, dice.uniform(0.1, 1.0) * took, dice)
            child.join(240)
        for attempt in range(3):  # workers of a killed one let go of their folders within seconds
            child = start(study, words, str(root), 2)
            child.join(240)
            if child.exitcode == 0:
                break
            time.sleep(2 * attempt)
        seen.lost += sum(not (root / folder / "result.json").exists() for folder in folders) + (child.exitcode != 0)
        found = {folder: whole(root / folder) for folder in folders if (root / folder / "result.json").exists()}
        other = [folder for folder in found if found[folder] != expected[folder]]
        if other or leftovers(root):
            print(f"{root}: {other} differ, {leftovers(root)} are left")
        seen.wrong += len(other) + bool(leftovers(root))
        shutil.rmtree(root)
    print(f"\nstudies: {seen}")
    assert (seen.lost, seen.wrong) == (0, 0)


@pytest.mark.parametrize("kills", several(1, 40))
def test_reports(tmp_path, kills):
    """The report before, or the new one; and the next one is whole, with nothing left beside it."""
    dice, seen = random.Random(kills), Figures()
    root = tmp_path / "study"
    levels = {"digits": {"identity": 0.5, "attention": 0.7, "pooling": 0.6}}
    write_study(root, Study("told", (StudyTask("digits"),), tuple(levels["digits"]), seeds=(0, 1, 2)), levels)
    took = timed(report, str(root))
    expected = pages(root)
    while seen.killed < kills:
        child = start(report, str(root))
        killed = strike(child, dice.uniform(0.0, 1.0) * took, dice)
        child.join(60)
        seen.killed += killed
        seen.resumed += killed and bool(leftovers(root))
        seen.wrong += any(page != expected[name] for name, page in pages(root).items())
        if dice.random() < 0.3 or seen.killed == kills:
            timed(report, str(root))
            seen.lost += pages(root) != expected
            seen.wrong += bool(leftovers(root))
    print(f"\nreports: {seen} (resumed: files of the killed one were there)")
    assert (seen.lost, seen.wrong) == (0, 0)


def pages(root: Path) -> dict[str, bytes]:
    names = ("index.html", "report.md", "runs.csv")
    return {name: (root / "report" / name).read_bytes() for name in names if (root / "report" / name).exists()}


def test_a_worker_that_dies_before_it_has_a_folder(tmp_path):
    """What the study notes of its death is no stranger's file to the next start."""
    one = Study("killed", SMALL_STUDY.tasks, ("identity",), seeds=(0,))
    folder = tmp_path / one.runs()[0].folder
    run_study(one, tmp_path, jobs=1, quiet=True)
    expected = whole(folder)
    shutil.rmtree(folder)
    runner._record_death(one.runs()[0], folder, "the worker process died with exit code -9 (SIGKILL)")
    assert collect(tmp_path).runs[0].status == "failed"
    assert run_study(one, tmp_path, jobs=1, quiet=True).counts == {"finished": 1} and whole(folder) == expected
    save_checkpoint(folder / "checkpoints", 3, {"step": 3})  # as of a process that was killed behind its result
    assert run_study(one, tmp_path, jobs=1, quiet=True).complete and not leftovers(tmp_path)
