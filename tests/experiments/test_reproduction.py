"""Every command that a report prints gives the number beside it, to the last digit, in a folder of its own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from matmix.experiments import cli
from matmix.experiments.folder import Result
from matmix.experiments.report import write_report
from matmix.experiments.report.collect import collect
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask

ODD = str(Path(__file__).with_name("odd_mixers.py"))


def test_the_commands_of_a_report_give_its_numbers(tmp_path, monkeypatch, capsys):
    study = Study(
        "again",
        (
            StudyTask("digits", {"patch": 2, "dim": 8, "depth": 1, "dropout": 0.1}, {"steps": 8, "eval_every": 3}),
            StudyTask("recall", {"dim": 8, "depth": 1, "eval_examples": 64}, {"steps": 6, "precision": "bf16"}),
        ),
        ("own", "attention(head_dim=4)"),
        (0, 1),
        imports=(ODD,),
    )
    run_study(study, tmp_path / "study", jobs=1, quiet=True)
    text = (write_report(tmp_path / "study", matrices=False).parent / "report.md").read_text()
    runs = collect(tmp_path / "study").runs
    assert len(runs) == 8
    for run in runs:
        assert f"| {run.score!r} |" in text and f"| {run.command} |" in text
        (where := tmp_path / "new" / str(runs.index(run))).mkdir(parents=True)
        monkeypatch.chdir(where)
        torch.manual_seed(7)  # what the process did before is no part of it
        with pytest.raises(SystemExit) as exit_:
            cli.main(shlex.split(run.command)[1:])
        assert exit_.value.code == 0, capsys.readouterr().err
        (path,) = where.rglob("result.json")
        again, first = Result.read(path.parent), run.result
        assert again.test == first.test and again.val == first.val and again.config == first.config
        assert again.reproduce != run.command, "it would be read, not done again"
        for name in ("final.safetensors", "metrics.jsonl"):
            assert (path.parent / name).read_bytes() == (run.folder / name).read_bytes()


def test_runs_that_are_missing_have_their_commands(tmp_path):
    study = Study("none", (StudyTask("digits", {"dim": 8}),), ("identity",), (0, 1), threads=2)
    (tmp_path / "study.json").write_text(json.dumps(study.to_json()))
    assert [run.status for run in collect(tmp_path).runs] == ["missing"] * 2
    for run, planned in zip(collect(tmp_path).runs, study.runs(), strict=True):
        assert run.command == planned.config.command(run.folder)
        assert "--task.dim 8" in run.command and f"--seed {run.seed}" in run.command and "--threads 2" in run.command
