"""Whose result is it: every file of a run says which run it is of, and how long it was; both are compared when read."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from matmix.experiments import trainer
from matmix.experiments.checkpoint import load_latest, save_checkpoint
from matmix.experiments.folder import FolderLost, check_whole
from matmix.experiments.index import Index
from matmix.experiments.manifest import read_manifest
from matmix.experiments.run import Result, RunConfig, RunError, execute, load_model
from matmix.experiments.weights import read_weights
from matmix.files import Damaged

SMALL = {"patch": 4, "dim": 8, "depth": 1}
QUICK = {"steps": 6, "batch_size": 8, "log_every": 1, "eval_every": 3, "checkpoint_every": 2}
UNREAD = ("final.safetensors", "best.safetensors", "test_examples.npz", "environment.json")
"""What an index does not read."""
OUTPUTS = ("final.safetensors", "best.safetensors", "metrics.jsonl", "test_examples.npz", "config.json")


def config(seed: int = 0, **changes) -> RunConfig:
    return RunConfig("digits", "identity", seed, SMALL, {**QUICK, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two finished runs of other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert execute(config(seed), folder / str(seed)).status == "finished"
    return folder / "0", folder / "1"


@pytest.fixture
def copies(runs, tmp_path) -> tuple[Path, Path]:
    for folder in runs:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "0", tmp_path / "1"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS if (folder / name).exists()}


def stopped(folder: Path, one: RunConfig, at: int, monkeypatch, act) -> None:
    """Execute a run that does something in the middle of its training."""
    real, left = trainer.accumulate, at

    def acting(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            act()
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "accumulate", acting)
        execute(one, folder)


# ------------------------------------------------------------------ the key of a run


def test_every_file_of_a_run_says_which_run_it_is_of(runs, tmp_path, monkeypatch):
    for seed, folder in enumerate(runs):
        key = config(seed).key
        assert Result.read(folder).key == key == read_manifest(folder)[0]
        assert json.loads((folder / ".matmix").read_text())["run"] == key
        for name in ("final", "best"):
            with safe_open(folder / f"{name}.safetensors", "pt") as file:
                assert file.metadata() == {"run": key}
        assert read_manifest(folder)[1].keys() == {*outputs(folder), "environment.json", "result.json"}

    def stop():
        (state,) = (tmp_path / "run" / "checkpoints").glob("step-*/state.json")
        assert json.loads(state.read_text())["run"] == config().key
        raise OSError("enough")

    stopped(tmp_path / "run", config(), 4, monkeypatch, stop)


@pytest.mark.parametrize(
    "name", ["result.json", "final.safetensors", "best.safetensors", "config.json", "manifest.json"]
)
def test_a_file_of_another_run_is_found(name, copies):
    """In whatever way it is read; the message names it, and nothing is touched."""
    mine, other = copies
    shutil.copyfile(other / name, mine / name)
    with pytest.raises((Damaged, RunError), match=r"json|safetensors|seed is 1 there and 0 here"):
        execute(config(), mine)
    assert (mine / name).read_bytes() == (other / name).read_bytes()
    if name == "result.json":
        with pytest.raises(Damaged, match=r"does not have its checksum|bytes of|another run: seed"):
            Result.read(mine)
    else:
        with pytest.raises(Damaged, match=name if name != "manifest.json" else "json|safetensors"):
            load_model(mine, "final" if name == "final.safetensors" else "best")
    (mine / "manifest.json").unlink()
    if name == "result.json":
        with pytest.raises(Damaged, match=r"another run: seed is 1 there and 0 here"):
            Result.read(mine)


def test_weights_know_their_run_without_a_manifest(copies):
    mine, other = copies
    for folder in copies:
        (folder / "manifest.json").unlink()
    shutil.copyfile(other / "best.safetensors", mine / "best.safetensors")
    with pytest.raises(Damaged, match=f"expected weights of the run {config().key}, but they are those of the run"):
        load_model(mine)


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(1)}, run="a")
    save_checkpoint(tmp_path, 2, {"x": torch.ones(2)}, run="b")
    with pytest.warns(UserWarning, match="step-00000002 .*it is of another run, b, and this one is a"):
        assert load_latest(tmp_path, "a")[0] == 1
    assert load_latest(tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 2}, "threads is 1 there and 2 here"),
        ({"recipe": {**QUICK, "precision": "bf16"}}, r"recipe\.precision is 'no' there and 'bf16' here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"plugins": {"a.py": "0"}}, r"plugins\.a\.py is None there and '0' here"),
        ({"surgery": {"level": "module"}}, "surgery is None there"),
    ],
)
def test_going_on_with_other_settings_is_refused_in_words(change, said, tmp_path, monkeypatch):
    """What was begun, too, and by its checkpoint's key where the configuration was exchanged."""

    def stop():
        raise OSError("enough")

    stopped(tmp_path, config(), 4, monkeypatch, stop)
    other = dataclasses.replace(config(), **change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".holder"}
    with pytest.raises(RunError, match=f"holds another run: .*{said}"):
        execute(other, tmp_path)
    assert before == {path: path.read_bytes() for path in before}


# ------------------------------------------------------------------ checksums


@pytest.mark.parametrize("name", [*OUTPUTS, "environment.json", "result.json", "manifest.json"])
@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(b""), Path.unlink], ids=["flip", "empty", "gone"]
)
def test_a_damaged_file_of_a_finished_run_is_named(name, damage, copies):
    """When the run is asked for again; nothing is touched. Without its folder it is done anew, to the same bytes."""
    mine, _ = copies
    if not (mine / name).exists():
        pytest.skip(f"the task keeps no {name}")
    before = outputs(mine)
    damage(mine / name)
    left = {path: path.read_bytes() for path in mine.iterdir() if path.suffix}
    if damage is Path.unlink and name in ("result.json", "config.json"):  # the one was not finished; the other is known
        execute(config(), mine)
    else:
        with pytest.raises((Damaged, RunError), match=name):
            execute(config(), mine)
        assert left == {path: path.read_bytes() for path in mine.iterdir() if path.suffix}
        assert Index(mine.parent)[mine.name].status == ("finished" if name in UNREAD else "damaged")
        shutil.rmtree(mine)
        execute(config(), mine)
    assert outputs(mine) == before
    check_whole(mine, Result.read(mine))
    if name in ("final.safetensors", "best.safetensors"):
        damage(mine / name)
        with pytest.raises(ValueError, match=name):
            read_weights(mine / name)
        with pytest.raises(ValueError, match=name):
            load_model(mine, name.partition(".")[0])


def test_a_log_that_was_changed_is_not_gone_on_with(tmp_path, runs, monkeypatch):
    """The checkpoint knows how the log began: the run starts where both fit, and ends with the same bytes."""

    def stop():
        lines = (tmp_path / "metrics.jsonl").read_bytes()
        assert lines.count(b'"loss"') >= 3
        (tmp_path / "metrics.jsonl").write_bytes(lines.replace(b'"loss": 2', b'"loss": 1', 1))
        raise OSError("enough")

    stopped(tmp_path, config(), 5, monkeypatch, stop)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl does not begin as it did"):
        assert execute(config(), tmp_path).status == "finished"
    assert outputs(tmp_path) == outputs(runs[0])


def test_runs_from_before_the_manifest_are_read(copies):
    mine, _ = copies
    (mine / "manifest.json").unlink()
    result = json.loads((mine / "result.json").read_text())
    del result["key"]
    (mine / "result.json").write_text(json.dumps(result))
    load_model(mine)
    assert execute(config(), mine).key == ""


def test_a_manifest_of_somebody_else_says_nothing(copies, tmp_path):
    mine, _ = copies
    shutil.copyfile(mine / "best.safetensors", tmp_path / "best.safetensors")
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert read_weights(tmp_path / "best.safetensors").keys()


# ------------------------------------------------------------------ two at once


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("at", [3, 6])
def test_a_run_whose_folder_was_removed_hands_its_result_to_nobody(tmp_path, runs, monkeypatch, at, again):
    """Begun anew with another seed in the same place: the other keeps its files, whatever moment it was."""
    folder = tmp_path / "run"

    def begin_anew():
        shutil.rmtree(folder)
        if again:  # as another process would do it
            shutil.copytree(runs[1], folder)
            (folder / ".matmix").write_text(
                json.dumps({"made by": "matmix", "kind": "run", "version": 1, "token": "x"})
            )

    with pytest.raises(FolderLost, match=f"{folder} was removed, or begun anew"):
        stopped(folder, config(), at, monkeypatch, begin_anew)
    if again:
        assert outputs(folder) == outputs(runs[1]) and Result.read(folder).config["seed"] == 1
        assert not (folder / "checkpoints").exists() and not (folder / "error.txt").exists()
    else:
        assert not folder.exists()


def test_what_was_removed_but_its_marker_is_another_folder(tmp_path, monkeypatch):
    """`rm -r folder/*` leaves the marker: it names the run that was there."""
    execute(config(), tmp_path)
    token = json.loads((tmp_path / ".matmix").read_text())["token"]
    for path in tmp_path.glob("[!.]*"):
        path.unlink()
    assert execute(config(1), tmp_path).config["seed"] == 1
    assert json.loads((tmp_path / ".matmix").read_text())["token"] != token


def test_a_thread_is_refused_while_another_trains(tmp_path, monkeypatch):
    """In the same folder, and in another: torch's generators are those of the process."""
    said: dict[str, str] = {}

    def other(name: str) -> None:
        try:
            execute(config(), tmp_path / name)
        except RunError as error:
            said[name] = str(error)

    def act():
        for name in ("a", "b"):
            thread = threading.Thread(target=other, args=(name,))
            thread.start()
            thread.join()

    stopped(tmp_path / "a", config(), 3, monkeypatch, act)
    assert f"in use by process {os.getpid()}" in said["a"] and "another thread of this process trains" in said["b"]
    assert Result.read(tmp_path / "a").status == "finished" and Result.read(tmp_path / "b") is None
    assert execute(config(), tmp_path / "b").status == "finished"
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
