"""The picture of accuracy against state: what it draws is what the runs hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from matmix.experiments.folder import Result
from matmix.experiments.study import Study, StudyTask
from sequence.pictures import family, mad, panels, state
from tests.experiments.synthetic import write_run


def result(mixer: str, score: float, *, bytes_: int | None, lr: float = 1e-3, val: float | None = None, dim: int = 64):
    config = {"task": "recall", "mixer": mixer, "options": {"dim": dim, "length": 24}, "recipe": {"lr": lr}}
    scores = {"accuracy": score, "loss": 1 - score}
    return Result(
        "finished", 1, config, "", "", val={"accuracy": score if val is None else val}, test=scores,
        tests={"test@2x": {"accuracy": score / 2}}, metric="accuracy", state_bytes=bytes_,
    )  # fmt: skip


def test_points_are_mixers_at_their_best_rate():
    results = [
        result("ssd(d_state=16)", 0.5, bytes_=100), result("ssd(d_state=16)", 0.7, bytes_=100),
        result("ssd(d_state=16)", 0.9, bytes_=100, lr=1e-2, val=0.1),
        result("ssd(d_state=16)", 0.8, bytes_=200, dim=128),
        result("attention", 1.0, bytes_=None),
    ]  # fmt: skip
    ((points, without),) = panels(results, "test", "").values()
    assert [(p.mixer, p.state, p.scores) for p in points] == [
        ("ssd(d_state=16)", 100, (0.5, 0.7)), ("ssd(d_state=16)", 200, (0.8,)),
    ]  # fmt: skip
    assert without == ["attention"]
    ((points, _),) = panels(results, "test@2x", "").values()
    assert points[0].scores == (0.25, 0.35)
    ((points, _),) = panels(results, "test", "loss").values()
    assert points[1].scores == (pytest.approx(0.2),)
    assert family("ssd(d_state=16)*2, attention") == "ssd, ssd, attention"


def test_a_study_becomes_a_picture(tmp_path: Path):
    """Two tasks, two widths, and a mixer without a state."""
    sizes = [StudyTask("recall", {"dim": dim, "length": 24}, label=f"dim {dim}") for dim in (8, 16)]
    study = Study("made-up", (*sizes, StudyTask("digits")), ("ssd", "attention", "delta_rule"), seeds=(0, 1))
    for run in study.runs():
        write_run(tmp_path / "study", run, 0.5)
        path = tmp_path / "study" / run.folder
        found = Result.read(path)
        kept = None if run.mixer == "attention" else 64 * run.config.options["dim"]
        found = dataclasses.replace(found, state_bytes=kept)
        (path / "result.json").write_text(json.dumps(dataclasses.asdict(found)))
    said = state(tmp_path / "study", tmp_path / "pictures" / "state.png")
    assert (tmp_path / "pictures" / "state.png").stat().st_size > 10_000
    assert "no state, as they are not recurrent: attention" in said
    with pytest.raises(ValueError, match="no finished run of a recurrent mixer with a score on 'test@2x'"):
        state(tmp_path / "study", tmp_path / "no.png", split="test@2x")
    assert not (tmp_path / "no.png").exists()


def test_scores_of_mad_become_a_picture(tmp_path: Path):
    """The best run of a setting, the mean over the settings of a task, the mean over the tasks."""
    tasks = [StudyTask("mad", {"kind": "compression"}), StudyTask("mad", {"kind": "recall"}, label="one")]
    tasks.append(StudyTask("mad", {"kind": "recall", "length": 256}, label="two"))
    rates = {"slow": {"lr": 1e-4}, "fast": {"lr": 1e-3}}
    study = Study("made-up", tuple(tasks), ("ssd", "attention"), seeds=(0,), recipes=rates)
    levels = {"mad": 0.3, "one": 0.5, "two": 0.1}
    for run in study.runs():
        level = levels[run.setting.split()[0]] + 0.1 * ("fast" in run.setting) + 0.2 * (run.mixer == "ssd")
        write_run(tmp_path / "study", run, level)
    said = mad(tmp_path / "study", tmp_path / "mad.png").splitlines()
    assert (tmp_path / "mad.png").stat().st_size > 5000
    assert said[1:] == ["ssd: compression 0.600 recall 0.600 mean 0.600",
                        "attention: compression 0.400 recall 0.400 mean 0.400"]  # fmt: skip
    with pytest.raises(ValueError, match="no finished run of the task mad"):
        write_run(tmp_path / "other", Study("o", (StudyTask("recall"),), ("ssd",)).runs()[0], 0.5)
        mad(tmp_path / "other", tmp_path / "mad.png")
