"""Further test splits: scored with the kept weights after the test, apart from it, whatever happens to the run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from matmix import LengthError, create_mixer, fork_seed
from matmix.experiments import Recipe, TensorTask, cli, scoring, trainer
from matmix.experiments.folder import Result, load_model, read_metrics
from matmix.experiments.report import write_report
from matmix.experiments.run import RunConfig, execute
from matmix.experiments.scoring import Scorer
from matmix.experiments.step import new_accelerator
from matmix.experiments.task import check_tests

TASK = f"{Path(__file__)}:Ones"


@dataclass(frozen=True)
class Ones(TensorTask):
    """Are there more ones than zeros? Tested at one, two and four times the length of training."""

    length: int = 8

    metric: ClassVar[str] = "accuracy"

    def recipe(self):
        return Recipe(steps=6, batch_size=16, lr=0.01, log_every=2, eval_every=2, checkpoint_every=2)

    def splits(self):
        sizes = {"train": (64, 1), "val": (32, 1), "test": (32, 1), "test@2x": (48, 2), "test@4x": (16, 4)}
        drawn = {}
        for seed, (name, (count, times)) in enumerate(sizes.items()):
            shape = (count, times * self.length + 1)
            bits = torch.randint(2, shape, generator=torch.Generator().manual_seed(seed))
            drawn[name] = (bits, (2 * bits.sum(1) > shape[1]).long())
        return drawn

    def model(self, mixer, seed):
        with fork_seed(seed, "model"):
            return Counter(mixer, self.length + 1)

    def loss(self, output, batch):
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self):
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(2, average="micro")}


class Counter(nn.Module):
    def __init__(self, mixer, length):
        super().__init__()
        self.embed, self.mixer, self.head = nn.Embedding(2, 8), create_mixer(mixer, 8, (length,)), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.mixer(self.embed(x)).mean(1))


def test_they_are_scored_with_the_kept_weights_and_reported(tmp_path, capsys):
    run = tmp_path / "pooling"
    result = execute(RunConfig(TASK, "pooling", 0), run)
    assert list(result.tests) == ["test@2x", "test@4x"] and result.facts["test@4x"] == 16 and not result.notes
    assert [line["split"] for line in read_metrics(run)][-3:] == ["test", "test@2x", "test@4x"]
    task, model = load_model(run)
    for split in ("test@2x", "test@4x"):
        scores = Scorer(task, new_accelerator("no"), 7)(model, split)
        assert result.tests[split] == pytest.approx(scores, rel=1e-5)
        words = f"evaluate {TASK} --mixer pooling --split {split} --weights {run}/best.safetensors"
        with pytest.raises(SystemExit) as leave:
            cli.main(words.split())
        assert leave.value.code == 0 and f"accuracy {scores['accuracy']:.4g}" in capsys.readouterr().out
    # A mixer that was built for one length has its test, and a note.
    fixed = execute(RunConfig(TASK, "dense", 0), tmp_path / "dense")
    assert fixed.status == "finished" and fixed.test and fixed.tests == {"test@2x": {}, "test@4x": {}}
    assert len(fixed.notes) == 2 and "test@2x has no score" in fixed.notes[0] and "resize_" in fixed.notes[0]
    page = write_report(tmp_path, matrices=False).with_name("report.md").read_text()
    table = page.split("### Further tests")[1]
    row = next(line for line in table.splitlines() if line.startswith("| pooling"))
    assert f"{result.tests['test@2x']['accuracy']:.4f}" in row and f"{result.tests['test@4x']['accuracy']:.4f}" in row
    assert "| none | none |" in table and "dense seed 0: test@4x has no score" in page


@dataclass(frozen=True)
class Spoilt(Ones):
    """The longest test has an answer that there is not."""

    def splits(self):
        drawn = super().splits()
        x, y = drawn["test@4x"]
        return {**drawn, "test@4x": (x, y + 2)}

    def loss(self, output, batch):
        if batch.y.max() > 1:
            raise ValueError(f"y must be 0 or 1, got {int(batch.y.max())}")
        return super().loss(output, batch)


def test_only_a_length_is_excused(tmp_path):
    """What else goes wrong in a further test is an error of the run, in every process."""
    assert issubclass(LengthError, ValueError)
    result = execute(RunConfig(f"{Path(__file__)}:Spoilt", "pooling", 0), tmp_path)
    assert result.status == "failed" and "y must be 0 or 1, got 3" in result.error
    length, other = LengthError("too long"), ValueError("no such class")
    assert scoring.agreed([(True, "too long")], length) is length
    assert type(scoring.agreed([(True, "too long")], None)) is LengthError
    for own in (None, length, other):
        error = scoring.agreed([(True, "too long"), (False, "no such class")], own)
        assert not isinstance(error, LengthError) and str(error) == "no such class"


@pytest.mark.parametrize("dies", ["test@2x", "test@4x"])
def test_a_run_that_stops_among_them_ends_the_same(dies, tmp_path, monkeypatch):
    config = RunConfig(TASK, "pooling", 0)
    whole = execute(config, tmp_path / "whole")
    real = Scorer.__call__

    def stop(self, model, split, *seed):
        if split == dies:
            raise OSError("stopped")
        return real(self, model, split, *seed)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Scorer, "__call__", stop)
        assert execute(config, tmp_path / "again").status == "failed"
    assert execute(config, tmp_path / "again").tests == whole.tests == Result.read(tmp_path / "again").tests
    for name in ("metrics.jsonl", "best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_their_names_are_their_own(capsys):
    class Twice(Ones):
        def tests(self):
            return ("test@2x", "test@2x")

    class Train(Ones):
        def tests(self):
            return ("train",)

    for cls in (Twice, Train):
        with pytest.raises(ValueError, match=rf"{cls.__name__}\.tests\(\) must name splits besides train, val, test"):
            check_tests(cls())
    with pytest.raises(SystemExit) as leave:
        cli.main(f"evaluate {TASK} --mixer pooling --split test@3x --weights {os.devnull}".split())
    assert leave.value.code and "split must be one of val, test, test@2x, test@4x, got" in capsys.readouterr().err
