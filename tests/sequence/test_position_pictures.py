"""The picture of accuracy along the row: every stretch once, from the shortest test that has it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from matmix.experiments.folder import Result
from matmix.experiments.study import Study, StudyTask
from sequence.position_pictures import curve, positions
from tests.experiments.synthetic import write_run


def scores(level: float) -> dict[str, float]:
    return {"accuracy": level, **{f"accuracy.{part}/4": level - part / 100 for part in (1, 2, 3, 4)}}


def test_a_study_becomes_a_picture(tmp_path: Path) -> None:
    tasks = tuple(StudyTask("state_tracking", {"problem": name}, label=name) for name in ("parity", "S3"))
    study = Study("made-up", tasks, ("ssd", "delta_rule"), seeds=(0, 1))
    for run in study.runs():
        write_run(tmp_path / "study", run, 0.5)
        path = tmp_path / "study" / run.folder
        tests = {"test@2x": scores(0.8), "test@4x": scores(0.7)} | ({"test@8x": {}} if run.mixer == "ssd" else {})
        found = dataclasses.replace(Result.read(path), test=scores(0.9), tests=tests)
        (path / "result.json").write_text(json.dumps(dataclasses.asdict(found)))
    places = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]
    levels = [0.89, 0.88, 0.87, 0.86, 0.77, 0.76, 0.67, 0.66]
    assert curve(found) == pytest.approx(dict(zip(places, levels, strict=True)))
    said = positions(tmp_path / "study", tmp_path / "pictures" / "positions.png")
    assert said.endswith("positions.png") and (tmp_path / "pictures" / "positions.png").stat().st_size > 10_000
    write_run(tmp_path / "other", Study("o", (StudyTask("recall"),), ("ssd",)).runs()[0], 0.5)
    with pytest.raises(ValueError, match="no finished run with scores by position"):
        positions(tmp_path / "other", tmp_path / "no.png")
