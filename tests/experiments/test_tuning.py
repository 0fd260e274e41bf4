"""Every arm has the same trials; validation chooses among them, the report shows them all."""

import dataclasses
from pathlib import Path

import pytest

from matmix.experiments.folder import write_json
from matmix.experiments.report import write_report
from matmix.experiments.report.collect import collect
from matmix.experiments.report.trials import trials_table
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from tests.experiments.synthetic import write_run

STUDY = Study(
    "s", (StudyTask("recall"),), ("ssd", "pooling"), seeds=(0, 1), tuning={"slow": {"lr": 1e-4}, "fast": {"lr": 1e-2}}
)


def test_validation_chooses_and_the_test_does_not(tmp_path: Path) -> None:
    runs = STUDY.runs()
    assert len({run.folder for run in runs}) == len({run.config.key for run in runs}) == 8
    budgets = {arm: sorted(run.config.recipe["lr"] for run in runs if run.mixer == arm) for arm in STUDY.mixers}
    assert budgets == {arm: [1e-4, 1e-4, 1e-2, 1e-2] for arm in STUDY.mixers}
    write_json(tmp_path / "study.json", STUDY.to_json())
    val = {("ssd", "slow"): 0.9, ("ssd", "fast"): 0.7, ("pooling", "slow"): 0.3, ("pooling", "fast"): 0.4}
    for run in runs:
        if (run.mixer, run.trial, run.seed) == ("pooling", "slow", 1):
            continue  # not finished, so it is not chosen for what one lucky seed gave
        lucky = 0.6 * ((run.mixer, run.trial) == ("pooling", "slow"))
        write_run(tmp_path, run, 1 - val[run.mixer, run.trial], val=val[run.mixer, run.trial] + lucky)
    collected = collect(tmp_path)
    (setting,) = collected.settings
    assert {(run.mixer, run.trial) for run in setting.runs} == {("ssd", "slow"), ("pooling", "fast")}
    assert setting.scores("ssd") == pytest.approx({0: 0.1, 1: 0.1}) and len(collected.runs) == 8
    assert trials_table(setting).to_dict("records") == [
        {"mixer": "ssd", "slow": "0.9000 chosen", "fast": "0.7000"},
        {"mixer": "pooling", "slow": "0.9000 (1 of 2)", "fast": "0.4000 chosen"},
    ]
    assert "### Tuning" in write_report(tmp_path, matrices=False).with_name("report.md").read_text()


def test_a_tuned_study_runs(tmp_path: Path) -> None:
    options = {"dim": 4, "depth": 1}
    recipe = {"steps": 1, "eval_every": 1, "batch_size": 4}
    small = dataclasses.replace(STUDY, tasks=(StudyTask("digits", options, recipe),), mixers=("pooling",), seeds=(0,))
    done = run_study(small, tmp_path, jobs=1, quiet=True)
    assert done.counts == {"finished": 2} and len(done.status) == 2
    for trial in small.tuning:
        (found,) = (run for run in collect(tmp_path).runs if run.trial == trial)
        assert found.result is not None and found.result.config["recipe"]["lr"] == small.tuning[trial]["lr"]
    with pytest.raises(ValueError, match=r"no setting .rate."):
        dataclasses.replace(small, tuning={"wrong": {"rate": 1}}).check()
