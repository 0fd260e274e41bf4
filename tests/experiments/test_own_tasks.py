"""A task of one's own: from a file, with batches, losses and outputs of any form, and in words what it lacks."""

from __future__ import annotations

import importlib
import itertools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from matmix.experiments import Batch, Recipe, Task, TensorTask, cli, register_task, trainer
from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result, read_metrics
from matmix.experiments.registry import check_class, list_tasks, task_class
from matmix.experiments.run import execute
from matmix.experiments.step import nothing
from matmix.experiments.task import examples, named_losses, total_loss
from sequence.tasks.digits import Digits

LAB = str(Path(__file__).with_name("lab.py"))
PARITY = f"{LAB}:Parity"


def here(command: str, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(shlex.split(command))
    out, error = capsys.readouterr()
    return exit_.value.code, out, error


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    assert execute(RunConfig(PARITY, "pooling", 0), folder).status == "finished"
    return folder


# ------------------------------------------------------------------ named in a file


def test_a_study_finds_a_registered_task(tmp_path, capsys):
    """The file registers it (in worker processes: see test_study.py), and its class is named in the file as well."""
    command = f"study lab-parity --import {LAB} --mixers identity pooling --seeds 1 --long 4 --jobs 1"
    status, _, error = here(f"{command} --out {tmp_path}/study", capsys)
    assert status == 0, error
    runs = [json.loads(path.read_text()) for path in (tmp_path / "study").rglob("config.json")]
    assert [run["options"]["length"] for run in runs] == [4, 4] and {run["task"] for run in runs} == {"lab-parity"}
    assert task_class("lab-parity") is task_class(PARITY)
    status, out, _ = here(f"list --tasks --import {LAB}", capsys)
    assert status == 0 and "Is the number of ones even" in out


def test_a_file_by_a_relative_name(monkeypatch):
    monkeypatch.chdir(Path(LAB).parent)
    assert RunConfig("lab.py:Parity", "identity") == RunConfig(PARITY, "identity")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab.py:Pariti", "cannot be imported"),
        ("none.py:Parity", "there is no file"),
        ("digit", "unknown task 'digit'; did you mean digits"),
    ],
)
def test_wrong_names_say_so(name, message, monkeypatch):
    monkeypatch.chdir(Path(LAB).parent)
    with pytest.raises(ValueError, match=message):
        task_class(name)


def test_names_are_taken_once():
    with pytest.raises(ValueError, match=r"'digits' is taken by sequence\.tasks\.digits:Digits"):
        register_task("digits")
    task_class(PARITY)
    with pytest.raises(ValueError, match=r"'lab-parity' is taken by Parity in .*lab\.py"):
        register_task("lab-parity")(Whole)
    importlib.import_module("tests.experiments.lab")  # the same file by another way
    with pytest.raises(ValueError, match="a name is letters"):
        register_task("a:b")
    assert "digits" in list_tasks()


# ------------------------------------------------------------------ batches, losses and outputs of any form


def test_named_losses_are_logged_and_scored_and_their_sum_is_minimised(trained):
    lines = read_metrics(trained)
    assert [line["split"] for line in lines] == ["train", "val", "train", "val", "test"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss.parity"] + line["loss.last"], rel=1e-5)
    result = Result.read(trained)
    assert set(result.val) == {"loss", "loss.parity", "loss.last", "accuracy"} and result.macs > 0
    assert result.facts == {"train": 64, "val": 64, "test": 64}


def test_parts_of_a_batch_of_any_form_are_one_step(trained, tmp_path):
    config = RunConfig(PARITY, "pooling", 0, recipe={"accumulate": 4})
    assert execute(config, tmp_path).status == "finished"
    for one, four in zip(read_metrics(trained), read_metrics(tmp_path), strict=True):
        losses = [{name: value for name, value in line.items() if "loss" in name} for line in (one, four)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3


def test_named_losses_go_on_where_they_stood(trained, tmp_path, monkeypatch):
    """Stopped after step 3, resumed from the checkpoint of step 1, within a window of the log."""
    real, done = trainer.accumulate, []

    def stop(*arguments):
        done.append(1)
        if len(done) == 4:
            raise OSError("stopped")
        return real(*arguments)

    monkeypatch.setattr(trainer, "accumulate", stop)
    config = RunConfig(PARITY, "pooling", 0, recipe={"checkpoint_every": 1})
    assert execute(config, tmp_path).status == "failed" and execute(config, tmp_path).status == "finished"
    assert (tmp_path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    there, here = (load_file(folder / "final.safetensors") for folder in (trained, tmp_path))  # but for their keys
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


def test_batches_are_nests_of_tensors():
    batch = Batch({"a": torch.arange(6), "b": (torch.ones(6, 2), "kept")}, [torch.zeros(6)])
    assert examples(batch) == 6
    second = batch.parts(3)[1]
    assert second.x["a"].tolist() == [2, 3] and second.x["b"][1] == "kept" and len(second.y[0]) == 2
    with pytest.raises(ValueError, match="first axis"):
        batch._replace(y=torch.zeros(5)).parts(3)


def test_losses_by_name():
    class Losses(NamedTuple):
        one: torch.Tensor
        two: torch.Tensor

    both = Losses(torch.tensor(1.0), torch.tensor(2.0))
    assert total_loss(both) == total_loss(both._asdict()) == 3 and set(named_losses(both)) == {"one", "two"}
    assert named_losses(both.one) == {} and total_loss(both.one) is both.one
    for wrong in ((both.one, both.two), {"one": 1.0}, {}):
        with pytest.raises(ValueError, match="a loss is a scalar tensor"):
            named_losses(wrong)


def test_the_loss_of_nothing_reaches_every_output():
    x = torch.ones(3, requires_grad=True)
    nothing(SimpleNamespace(logits=(2 * x,), more={"length": 3})).backward()
    assert (x.grad == 0).all()


# ------------------------------------------------------------------ what a task lacks


@dataclass(frozen=True)
class Whole(TensorTask):
    size: int = 3

    metric: ClassVar[str] = "accuracy"

    def recipe(self):
        return Recipe()

    def splits(self):
        return {"train": (torch.zeros(8, 1), torch.zeros(self.size))}

    def model(self, mixer, seed):
        raise NotImplementedError

    def loss(self, output, batch):
        raise NotImplementedError

    def metrics(self):
        return {}


class Undecorated(Whole):
    more: int = 4


class Changed(Whole):
    size = 5


class Plain(Task):
    metric = "accuracy"


@dataclass
class Open(Task):
    metric: ClassVar[str] = "accuracy"


@dataclass(frozen=True)
class Half(Task):
    metric: ClassVar[str] = "accuracy"

    def recipe(self):
        return Recipe()


@dataclass(frozen=True)
class NoDefault(Digits):
    more: int = 3
    aliases: ClassVar[dict[str, str]] = {"much": "mor"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Undecorated", r"put the line @dataclass\(frozen=True\) above class Undecorated"),
        ("Changed", r"put the line @dataclass\(frozen=True\) above class Changed"),
        ("Plain", r"put the line @dataclass\(frozen=True\) above class Plain"),
        ("Open", r"write @dataclass\(frozen=True\) above class Open"),
        ("Half", r"Half has no batches, loss, metrics, model: write them"),
        ("NoDefault", "aliases stand for settings, which it has not: {'much': 'mor'}"),
    ],
)
def test_what_is_missing_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        task_class(f"{__name__}:{name}")


def test_no_metric_is_said():
    named = dict(vars(Whole))
    del named["metric"]
    with pytest.raises(ValueError, match="names no metric"):
        check_class(type("NoMetric", (TensorTask,), named))


def test_tensors_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"Whole\.splits\(\)\['train'\]: the first axis"):
        next(Whole().batches("train", 2))
    with pytest.raises(ValueError, match=r"has no 'val', but train"):
        next(Whole(size=8).batches("val", 2))
    assert [len(batch.x) for batch in itertools.islice(Whole(size=8).batches("train", 2), 5)] == [2] * 5
