"""A study of ten thousand finished runs: how long until it knows that nothing is left to do, and its report.

    python -m benchmarks.studies [--runs 10000] [--out FILE.md]

The folders are written as runs leave them, with made-up scores: 10 arms, 5 seeds, as many data sets for 5 models as it
takes. Each time is of a process of its own, once without the index, which is then made, and once with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import heading, say, table
from matmix.experiments.folder import Result
from matmix.experiments.index import NAME
from matmix.experiments.study import Study, StudyTask

ARMS = ("attention", "identity", "dense", "mean_matrix", "pooling", "hydra", "ssd", "fnet", "mlp", "toeplitz")
MODELS, SEEDS = 5, 5
PLAN = "from matmix.experiments.runner import run_study; run_study(study, root, jobs=1, quiet=True)"
REPORT = "from matmix.experiments.report import write_report; write_report(root, matrices=False)"
TIMED = """
import json, sys, time
from pathlib import Path
from matmix.experiments.study import Study
root = Path(sys.argv[1])
began = time.perf_counter()
study = Study.from_json(json.loads((root / "study.json").read_text()))
{work}
print(time.perf_counter() - began)
"""


def made_up(root: Path, runs: int) -> Study:
    """The folders of a finished study of so many runs."""
    count = -(-runs // (len(ARMS) * SEEDS * MODELS))
    tasks = tuple(
        StudyTask("digits", label=f"data{data} model{model}", model=f"model{model}", data=f"data{data}")
        for model in range(MODELS)
        for data in range(count)
    )
    study = Study("made-up", tasks, ARMS, seeds=tuple(range(SEEDS)), margin=0.01)
    noise = np.random.default_rng(0)
    for run in study.runs():
        folder = root / run.folder
        folder.mkdir(parents=True)
        score = 0.39 + 0.001 * ARMS.index(run.mixer) + 0.0006 * noise.normal()
        config = run.config.to_json()
        lines = [{"step": step, "split": "val", "loss": 1.0, "mse": score + 1 / step} for step in range(50, 501, 50)]
        result = Result(
            status="finished", step=500, config=config, command="matmix study", reproduce=f"matmix train {run.folder}",
            val={"mse": score}, test={"mse": score}, metric="mse", higher_is_better=False, best_step=500,
            baselines={"last day": {"mse": 0.512}}, facts={"train": 1078, "test": 360}, parameters=20_000,
            macs=1_000_000, fft_flops=0, tokens=16, step_seconds=0.01, samples_per_second=6400.0, seconds=5.0,
            peak_memory_bytes=30_000_000,
            environment={"python": "3.11", "versions": {"torch": "2.6"}, "cores": 2, "gpu": []},
        )  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
    (root / "study.json").write_text(json.dumps(study.to_json()))
    return study


def seconds(work: str, root: Path) -> float:
    """Of a piece of work in a process of its own, imports of the libraries that it asks for included."""
    made = [sys.executable, "-c", TIMED.format(work=work), str(root)]
    found = subprocess.run(made, check=True, capture_output=True, text=True)
    return float(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "study"
        root.mkdir()
        began = time.perf_counter()
        runs = len(made_up(root, given.runs).runs())
        say(f"{runs:,} runs written in {time.perf_counter() - began:.0f} s")
        for name, work in (("plan", PLAN), ("report", REPORT)):
            (root / NAME).unlink(missing_ok=True)
            rows.append([name, *(f"{seconds(work, root):.1f} s" for _ in range(2))])
            say(str(rows[-1]))
        size = (root / "report" / "index.html").stat().st_size
    text = "\n\n".join((
        heading(f"python -m benchmarks.studies --runs {given.runs}"),
        table([f"{runs:,} finished runs", "without the index", "with it"], rows),
        f"The page has {size / 1e6:.1f} MB: tables of all settings, pictures of four.",
    ))  # fmt: skip
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
