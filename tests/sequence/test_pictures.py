"""The picture of accuracy against state: what it draws is what the runs hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from matmix.experiments.folder import Result
from matmix.experiments.study import Study, StudyTask
from sequence.pictures import family, panels, state
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
