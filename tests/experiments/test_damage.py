"""What a disk, a person or a program does to one file of a study costs that run, and is named; the rest goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from matmix.experiments.checkpoint import load_latest, save_checkpoint
from matmix.experiments.folder import LINE_KEYS, Result, read_config
from matmix.experiments.index import Index
from matmix.experiments.lease import Watch, holder, numbers
from matmix.experiments.report.collect import collect
from matmix.experiments.run import execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from matmix.files import Damaged, read_json, read_lines, record
from matmix.surgery import storage
from sequence.data import cache
from sequence.series.panel import files
from tests.experiments.synthetic import write_run

STUDY = Study("harmed", (StudyTask("digits"),), ("identity", "attention", "pooling"), seeds=(0,))
TEXTS = {
    "empty": b"",
    "torn": b'{"status": "fini',
    "a list": b"[1, 2]",
    "null": b"null",
    "another object": b'{"name": "somebody else\'s", "version": "1.0"}',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "zeros": bytes(300),
    "deep": b"[" * 100_000,
    "a huge number": b'{"step": ' + b"1" * 5000 + b"}",
    "two lines": b'{"step": 1, "split": "val"}\n{"step": "one", "split": "val"}\n',
}
RUN_FILES = ("config.json", "result.json", "metrics.jsonl")


def write(root: Path) -> list[Path]:
    """A finished study and its run folders."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.json").write_text(json.dumps(STUDY.to_json()))
    for run in STUDY.runs():
        write_run(root, run, 0.5)
    return [root / run.folder for run in STUDY.runs()]


def harm(path: Path, how: str) -> None:
    if how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a loop of links":
        path.unlink()
        path.symlink_to(path.name)
    else:
        path.write_bytes(TEXTS[how])


def harms_of(file: str) -> list[str]:
    """A log of no lines is one that a process was killed in."""
    return [how for how in (*TEXTS, "a folder") if not (file == "metrics.jsonl" and how in ("empty", "torn", "null"))]


@pytest.mark.parametrize(
    ("file", "how"), [(file, how) for file in RUN_FILES for how in harms_of(file) if "line" not in file]
)
def test_a_damaged_file_costs_its_run_and_is_named(tmp_path, file, how):
    first, *_ = write(tmp_path)
    if file == "metrics.jsonl" and how not in ("a folder", "two lines"):
        (first / file).write_bytes(TEXTS[how] + b"\n")
    else:
        harm(first / file, how)
    found = collect(tmp_path)
    assert [run.status for run in found.runs] == ["damaged", "finished", "finished"]
    assert found.runs[0].score is None and f"{first / file}" in found.runs[0].damage
    assert "expected" in found.runs[0].damage and not found.problems
    if how == "two lines" and file == "metrics.jsonl":
        assert "metrics.jsonl, line 2: expected a line of a run's log, but its 'step' must be a whole number, got" in (
            found.runs[0].damage
        )


def test_a_study_with_a_damaged_run_goes_on(tmp_path, capsys):
    first, second, third = write(tmp_path)
    harm(first / "result.json", "torn")
    (second / "result.json").write_text("[]")
    shutil.rmtree(third)
    quick = {"steps": 2, "batch_size": 8, "eval_every": 2}
    study = Study("harmed", (StudyTask("digits", {"dim": 4, "depth": 1}, quick),), STUDY.mixers, seeds=(0,))
    for folder, run in zip((first, second), study.runs(), strict=False):
        (folder / "config.json").write_text(json.dumps(run.config.to_json()))
    for workers in (False, True):
        outcome = run_study(study, tmp_path, jobs=1, worker=workers)
        assert list(outcome.status.values()) == ["damaged", "damaged", "finished"] and not outcome.complete
        assert [str(folder / "result.json") in text for folder, text in
                zip((first, second), outcome.errors.values(), strict=True)] == [True, True]  # fmt: skip
        said = capsys.readouterr().out
        assert (
            said.count("seed 0: damaged, ") == 2
            and f"Remove {first}, and the command that made it makes it anew." in said
        )
    shutil.rmtree(first)
    assert run_study(study, tmp_path, jobs=1, quiet=True).counts == {"finished": 2, "damaged": 1}


@pytest.mark.parametrize("how", [*TEXTS, "a folder"])
def test_what_stands_beside_the_runs_is_passed_over_and_named(tmp_path, how):
    write(tmp_path)
    (tmp_path / "sessions").mkdir()
    for name in ("study.json", "sessions/1.json"):
        (tmp_path / name).touch()
        harm(tmp_path / name, how)
    (tmp_path / "index.jsonl").unlink(missing_ok=True)
    (tmp_path / "index.jsonl").touch()
    harm(tmp_path / "index.jsonl", how)
    found = collect(tmp_path)
    assert sorted(run.mixer for run in found.runs) == sorted(STUDY.mixers) and found.study is None
    assert all(run.status == "finished" for run in found.runs) and not found.sessions
    assert [str(tmp_path / name) in text for name, text in
            zip(("study.json", "sessions/1.json"), found.problems, strict=True)] == [True, True]  # fmt: skip


@pytest.mark.parametrize("text", ['{"react": 1}', "// not JSON", "[]", '{"task": 1, "mixer": 2}'])
def test_configurations_of_other_programs_are_no_runs(tmp_path, text):
    """At the root too, where one would hide all runs below it."""
    write(tmp_path)
    for folder in (tmp_path, tmp_path / "web" / "app"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(text)
    found = collect(tmp_path)
    assert len(found.runs) == 3 and {run.status for run in found.runs} == {"finished"}
    assert len(found.problems) == 2 and all("config.json" in text and "passed over" in text for text in found.problems)


def test_a_file_in_the_place_of_a_run_is_damage(tmp_path):
    first, *_ = write(tmp_path)
    shutil.rmtree(first)
    first.write_text("not a folder")
    found = collect(tmp_path)
    assert [run.status for run in found.runs] == ["damaged", "finished", "finished"]
    assert f"{first}: expected a folder of a run" in found.runs[0].damage


def test_an_index_says_nothing_of_damage(tmp_path):
    first, *_ = write(tmp_path)
    whole = (first / "result.json").read_bytes()
    harm(first / "result.json", "torn")
    assert collect(tmp_path).runs[0].status == "damaged"
    (first / "result.json").write_bytes(whole)
    assert collect(tmp_path).runs[0].status == "finished"
    assert Index(tmp_path)[STUDY.runs()[0].folder].status == "finished"


# ------------------------------------------------------------------ one run


def test_a_run_in_a_damaged_folder_says_which_file(tmp_path):
    (run, *_) = STUDY.runs()
    write(tmp_path)
    folder = tmp_path / run.folder
    for name in ("result.json", "config.json"):
        harm(folder / name, "torn")
        with pytest.raises(ValueError, match=rf"{name}.*(expected|cannot be read)"):
            execute(run.config, folder)
    with pytest.raises(Damaged, match=r"config.json, line 1: expected the configuration of a run, but it is no JSON"):
        read_config(folder)


@pytest.mark.parametrize("name", ["step-00000023.bak", "step-abc", "step-", "step-00000099", "step-000000003"])
def test_strangers_among_checkpoints_and_leases(tmp_path, name):
    save_checkpoint(tmp_path, 3, {"weights": torch.ones(2)})
    if name == "step-00000099":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    found = load_latest(tmp_path)
    assert found is not None and found[0] == 3
    save_checkpoint(tmp_path, 7, {"weights": torch.ones(2)})
    assert load_latest(tmp_path)[0] == 7 and (tmp_path / name).exists()
    for stranger in ("lease-old.json", "lease-.json", "lease-000001.json.bak"):
        (tmp_path / stranger).write_text("{}")
    assert numbers(tmp_path) == []
    (tmp_path / "lease-000001.json").write_text("[]")
    assert "a machine" in holder(tmp_path).replace("an unknown", "a") and Watch().take(tmp_path) is None


@pytest.mark.parametrize("how", [*TEXTS, "a folder", "without the rest"])
def test_other_folders_that_are_read(tmp_path, how, capsys):
    """A surgery, a forecaster and an entry of the cache, by the same reader."""
    for names, read in (
        ((storage.WORDS, storage.WEIGHTS), lambda folder: storage.apply(nn.Linear(2, 2), folder)),
        ((files.NAME, files.WEIGHTS), files.load),
    ):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        if how == "without the rest":
            (folder / names[0]).write_text('{"format": 1}')
        else:
            harm(folder / names[0], how)
        with pytest.raises(ValueError if how != "a folder" else (ValueError, FileNotFoundError), match=names[0]):
            read(folder)
    (tmp_path / cache.MANIFEST).touch()
    harm(tmp_path / cache.MANIFEST, "empty" if how == "without the rest" else how)
    assert cache._opened(tmp_path) is None and "entry.json cannot be read" in capsys.readouterr().err


# ------------------------------------------------------------------ the reader

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_damaged(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    try:
        value = read_json(path, "something")
    except Damaged as error:
        assert str(error).startswith(str(path)) and "expected something, but" in str(error)
    else:
        json.dumps(value, ensure_ascii=False).encode()
    try:
        assert all({"step", "split"} <= line.keys() for line in read_lines(path, "a log", LINE_KEYS))
    except Damaged as error:
        assert f"{path}, line" in str(error)


@given(name=st.sampled_from(sorted(Result.__dataclass_fields__)), value=JSON)
def test_a_field_of_a_result_is_of_its_type_or_damage(name, value):
    base = {"status": "finished", "step": 3, "command": "", "reproduce": "",
            "config": {"task": "t", "mixer": "m", "seed": 0, "options": {}, "recipe": {}}}  # fmt: skip
    before = record(Result, base, Path("r"), "a result")
    try:
        found = Result.of({**base, name: value}, Path("r"))
    except Damaged as error:
        assert "r: expected the result of a run" in str(error)
    else:
        default = getattr(before, name)
        assert default is None or isinstance(getattr(found, name), int | float if isinstance(default, float)
                                             else type(default))  # fmt: skip
