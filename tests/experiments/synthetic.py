"""Run folders as a study leaves them, with scores that were made up: for tests of the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from matmix.experiments.run import Result
from matmix.experiments.study import Study, StudyRun

MIXERS = (
    "identity", "attention", "linear_attention", "pooling", "sep_conv", "fnet", "global_filter", "aff", "dense", "mlp",
    "toeplitz", "s4d", "ssd", "hydra",
)  # fmt: skip
ENVIRONMENT = {
    "command": "matmix study made-up",
    "python": "3.11.7",
    "versions": {"matmix": "0.1.0", "torch": "2.6.0"},
    "revision": "0123456789ab",
    "platform": "Linux",
    "cpu": "A CPU",
    "cores": 2,
    "threads": 1,
    "gpu": [],
}


def write_run(
    root: Path,
    run: StudyRun,
    score: float,
    *,
    status: str = "finished",
    cost: float = 1.0,
    metric: str = "accuracy",
    higher_is_better: bool = True,
    baselines: dict | None = None,
    error: str | None = None,
    solved_above: float | None = None,
    ablations: dict[str, float] | None = None,
    val: float | None = None,
) -> None:
    """One run folder; the curve rises to the score."""
    folder = root / run.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(run.config.to_json()))
    steps = range(50, 301, 50)
    lines = [
        {
            "step": step,
            "split": "val",
            "loss": 1.0,
            metric: score * (1 - np.exp(-step / 80) * (1 if higher_is_better else -1)),
        }
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "unfinished":
        return
    done = status == "finished"
    result = Result(
        status=status,
        step=300 if done else 120,
        config=run.config.to_json(),
        command="matmix study made-up",
        reproduce=run.config.command(folder),
        val={"loss": 0.1, metric: score if val is None else val} if done else {},
        test={"loss": 0.1, metric: score} if done else {},
        ablations={how: {metric: found} for how, found in (ablations or {}).items()},
        metric=metric if done else "",
        higher_is_better=higher_is_better,
        best_step=300 if done else None,
        baselines=(baselines if baselines is not None else {"chance": {metric: 0.1}}) if done else {},
        solved_above=solved_above,
        facts={"train": 1078, "test": 360} if done else {},
        parameters=int(20_000 * cost) if done else None,
        macs=int(1_000_000 * cost) if done else None,
        fft_flops=0 if done else None,
        tokens=16 if done else None,
        step_seconds=0.01 * cost if done else None,
        samples_per_second=6400 / cost if done else None,
        seconds=5.0 * cost if done else None,
        peak_memory_bytes=int(30e6 * cost) if done else None,
        error=error,
        environment=ENVIRONMENT,
    )
    (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))


def write_study(root: Path, study: Study, levels: dict[str, dict[str, float]], spread: float = 0.01) -> None:
    """A finished study: ``levels[setting][mixer]`` plus noise. Runs without a level stay missing."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.json").write_text(json.dumps(study.to_json()))
    generator = np.random.default_rng(0)
    arms = list(dict.fromkeys(run.mixer for run in study.runs()))
    for run in study.runs():
        if run.mixer in levels.get(run.setting, {}):
            score = levels[run.setting][run.mixer] + spread * generator.normal()
            write_run(root, run, float(min(score, 1.0)), cost=1 + 0.1 * arms.index(run.mixer))
