"""Whose folder is it: commands write into folders that are free or ours, and remove what we made, by name."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from matmix import create_mixer, folders, surgery
from matmix.experiments import cli
from matmix.experiments.checkpoint import remove_checkpoints, save_checkpoint
from matmix.experiments.cli_packages import list_commands
from matmix.experiments.report import write_report
from matmix.experiments.run import RunConfig, RunError, execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from tests.experiments.synthetic import write_study

SMALL = ["--task.patch", "4", "--task.dim", "8", "--task.depth", "1"]
FEW = [*SMALL, "--recipe.steps", "2", "--recipe.batch-size", "8"]
FOLDERS = {
    "train": ["train", "digits", "--mixer", "identity", *FEW, "--quiet", "--out"],
    "study": ["study", "digits", "--mixers", "identity", "--seeds", "1", *FEW, "--out"],
    "save-pretrained": ["save-pretrained", "--run", "RUN", "--out"],
}
"""Commands whose --out is a folder; the folder comes last."""
FILES = {"show", "explain", "picture", "forecast"}
"""Those whose --out is one file, which the user names."""
STRANGE: dict[str, dict[str, str]] = {
    "checkpoints": {"checkpoints/precious.bin": "mine", "checkpoints/step-00000001/state.json": "mine"},
    "a configuration": {"config.json": '{"model_type": "bert"}', "model.safetensors": "mine"},
    "a list": {"config.json": "[1]"},
    "a study": {"study.json": '{"title": "mine"}', "runs/a.txt": "mine"},
    "a lock": {".lock": "mine"},
    "a marker": {".matmix": "mine"},
    "a page": {"report/index.html": "<p>mine</p>", "index.jsonl": "mine\n"},
}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def status(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    return int(left.value.code or 0), capsys.readouterr().err


def config(**changes) -> RunConfig:
    small = {"patch": 4, "dim": 8, "depth": 1}
    return RunConfig("digits", "identity", 0, small, {"steps": 2, "batch_size": 8, "log_every": 1, **changes})


@pytest.fixture
def run_of_words(tmp_path_factory, monkeypatch) -> Path:
    """The folder of a finished run, for what asks for one; that its model is none of transformers is found later."""
    folder = tmp_path_factory.mktemp("words") / "run"
    execute(config(), folder)
    return folder


def test_every_command_with_a_folder_is_here():
    takes = set()
    for command in [*cli.COMMANDS, *list_commands()]:
        said = io.StringIO()
        with pytest.raises(SystemExit), contextlib.redirect_stdout(said):
            cli.main([command, *(["ETTh1"] if command == "forecast" else []), "--help"])
        if "--out" in said.getvalue() or command == "picture":
            takes.add(command)
    assert takes == FOLDERS.keys() | FILES


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("command", FOLDERS)
def test_no_command_touches_a_folder_of_others(command, strange, tmp_path, capsys, run_of_words, monkeypatch):
    folder = tmp_path / "theirs"
    fill(folder, STRANGE[strange])
    before = tree(tmp_path)
    os.symlink(folder, tmp_path / "link")
    monkeypatch.chdir(folder)
    words = [str(run_of_words) if word == "RUN" else word for word in FOLDERS[command]]
    for out in (".", str(folder), str(tmp_path / "link")):
        code, error = status([*words, out], capsys)
        assert code == 2 and len(error.strip().splitlines()) == 1, error
        assert out in error and ("take another folder" in error or ".matmix" in error)
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_is_no_file_and_no_dead_link(command, tmp_path, capsys, run_of_words):
    (tmp_path / "file").write_text("mine")
    os.symlink(tmp_path / "nowhere", tmp_path / "dead")
    words = [str(run_of_words) if word == "RUN" else word for word in FOLDERS[command]]
    for out, what in (("file", "is a file"), ("dead", "is a dead link")):
        code, error = status([*words, str(tmp_path / out)], capsys)
        assert code == 2 and f"{tmp_path / out} {what}" in error
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_folder_of_one_kind_is_none_of_another(tmp_path, capsys):
    assert status([*FOLDERS["train"], str(tmp_path / "a")], capsys)[0] == 0
    code, error = status([*FOLDERS["study"], str(tmp_path / "a")], capsys)
    assert code == 2 and "is that of a run, not study" in error


@pytest.mark.parametrize("write", ["surgery", "distillation", "forecaster"])
def test_savers_of_the_library_ask_too(write, tmp_path):
    fill(tmp_path, {"weights.safetensors": "mine"})
    before = tree(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(create_mixer("attention(heads=2)", 8, 4))
    with pytest.raises(folders.NotOurs, match=r"folder must be a new or empty folder.* holds weights\.safetensors"):
        if write == "surgery":
            surgery.save(surgery.replace(model, "identity", where="0"), tmp_path)
        elif write == "distillation":
            recipe = surgery.DistillRecipe(None, surgery.Stage(1), None)
            student = torch.nn.Sequential(create_mixer("dense", 8, 4))
            surgery.distill(model, student, lambda step: torch.randn(2, 4, 8), recipe, folder=tmp_path)
        else:
            from sequence.series.panel import files

            kept = files.Kept(None, type("P", (), {"series": [], "freq": type("F", (), {"freqstr": "h"})}), {},
                              (torch.zeros(0).numpy(),) * 2, [], {})  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(files.dataclasses, "asdict", lambda settings: {})
                files.save(kept, tmp_path)
    assert tree(tmp_path) == before


# ------------------------------------------------------------------ what is ours


KILLED = ".tmp-.matmix-00000000-1-00000000"
"""A marker that a process of another machine did not end."""


@pytest.mark.parametrize(
    ("old", "files"),
    [
        ("matmix.surgery.storage:_is_surgery", ("surgery.json", "surgery.safetensors")),
        ("matmix.surgery.distill:_is_distillation", ("distill.pt", "history.jsonl", ".distill.pt")),
        ("sequence.series.panel.files:_is_forecaster", ("forecaster.json", "weights.safetensors")),
    ],
)
def test_what_a_killed_process_left_says_nothing_of_an_older_folder(old, files, tmp_path):
    module, _, name = old.partition(":")
    is_old = getattr(importlib.import_module(module), name)
    fill(tmp_path, dict.fromkeys((*files, KILLED), ""))
    assert folders.claim(tmp_path, "old", is_old) == folders.token(tmp_path) != ""
    (tmp_path / folders.MARKER).unlink()
    fill(tmp_path, {"a.bin": "mine"})
    with pytest.raises(folders.NotOurs, match=r" a\.bin"):
        folders.claim(tmp_path, "old", is_old)


def test_folders_from_before_the_marker_are_adopted(tmp_path):
    """Of a run by its configuration, of a study by its study.json; a report by its pages."""
    execute(config(), tmp_path / "run")
    study = Study("small", (StudyTask("digits"),), ("identity",), (0,))
    write_study(tmp_path / "study", study, {"digits": {"identity": 0.9}})
    write_report(tmp_path / "study", matrices=False)
    for folder in ("run", "study/report"):
        (tmp_path / folder / ".matmix").rename(tmp_path / folder / KILLED)
    assert execute(config(), tmp_path / "run").status == "finished"
    (tmp_path / "study" / "report" / "9-old-curves.png").write_bytes(b"of an older report")
    write_report(tmp_path / "study", matrices=False)
    assert run_study(study, tmp_path / "study", jobs=1, quiet=True).complete
    kinds = {folder: folders.marker(tmp_path / folder)["kind"] for folder in ("run", "study", "study/report")}
    assert kinds == {"run": "run", "study": "study", "study/report": "report"}
    assert not (tmp_path / "study" / "report" / "9-old-curves.png").exists()


def test_a_report_replaces_its_own_files_alone(tmp_path):
    study = Study("small", (StudyTask("digits"),), ("identity", "fnet"), (0,))
    write_study(tmp_path, study, {"digits": {"identity": 0.9, "fnet": 0.95}})
    write_report(tmp_path, matrices=False)
    report = tmp_path / "report"
    fill(report, {"notes.txt": "mine", "own.png": "mine", "below/a.csv": "mine"})
    write_report(tmp_path, matrices=False, pictured=0)
    assert not list(report.glob("1-*.png")), "pictures of the report before are gone"
    assert {"notes.txt", "own.png", "below/a.csv"} <= tree(report).keys()
    fill(report, {"1-digits-cost.png": "mine"})
    before = tree(report)
    with pytest.raises(ValueError, match=r"1-digits-cost\.png is not of a report"):
        write_report(tmp_path, matrices=False)
    assert tree(report) == before


@pytest.mark.parametrize("files", [["index.html"], ["report.md", "index.html", "runs.csv"]])
def test_a_report_of_others_stays(files, tmp_path, capsys):
    write_study(tmp_path, Study("small", (StudyTask("digits"),), ("identity",), (0,)), {"digits": {"identity": 0.9}})
    fill(tmp_path / "report", dict.fromkeys(files, "mine"))
    before = tree(tmp_path / "report")
    code, error = status(["report", str(tmp_path)], capsys)
    assert code == 2 and "report must be a new or empty folder" in error
    assert tree(tmp_path / "report") == before and not list(tmp_path.glob(".tmp-*"))


def test_checkpoints_are_removed_by_name(tmp_path, recwarn):
    save_checkpoint(tmp_path / "a", 3, {"x": torch.ones(1)})
    remove_checkpoints(tmp_path / "a")
    assert not (tmp_path / "a").exists() and not list(recwarn)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "b", step, {"x": torch.ones(1)})
        fill(tmp_path / "b", {f"step-{step:08}/notes.txt": "mine", "step-00000023.bak/state.json": "mine", "a.bin": ""})
    with pytest.warns(UserWarning, match=r"b stays: .*notes\.txt"):
        remove_checkpoints(tmp_path / "b")
    assert tree(tmp_path / "b").keys() == {
        "a.bin", "step-00000001/notes.txt", "step-00000002/notes.txt", "step-00000003/notes.txt",
        "step-00000023.bak/state.json",
    }  # fmt: skip


def test_starting_anew_keeps_what_others_put_there(tmp_path):
    """--no-resume and the end of a run remove checkpoints, and a link is not followed."""
    outside = tmp_path / "outside"
    fill(outside, {"step-00000001/state.json": "mine"})
    execute(config(), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    os.symlink(outside, tmp_path / "run" / "checkpoints")
    before = tree(outside)
    with pytest.warns(UserWarning, match="checkpoints stays"):
        remove_checkpoints(tmp_path / "run" / "checkpoints")
    assert tree(outside) == before
    (tmp_path / "run" / "checkpoints").unlink()
    fill(tmp_path / "run", {"checkpoints/notes.txt": "mine"})
    with pytest.warns(UserWarning, match=r"checkpoints stays: .*notes\.txt"):
        assert execute(config(), tmp_path / "run", resume=False).status == "finished"
    assert tree(tmp_path / "run" / "checkpoints") == {"notes.txt": b"mine"}


def test_a_folder_that_was_made_again_is_another(tmp_path):
    first = folders.claim(tmp_path / "a", "run")
    assert folders.claim(tmp_path / "a", "run") == first
    shutil.rmtree(tmp_path / "a")
    assert folders.claim(tmp_path / "a", "run") != first


def test_a_marker_to_come_is_not_read(tmp_path):
    folders.claim(tmp_path / "a", "run")
    said = json.loads((tmp_path / "a" / ".matmix").read_text())
    (tmp_path / "a" / ".matmix").write_text(json.dumps({**said, "version": 2}))
    with pytest.raises(RunError, match=r"\.matmix is of version 2; this matmix reads version 1"):
        execute(config(), tmp_path / "a")
