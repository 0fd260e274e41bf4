"""A study from Python: does reading digits need attention, and how far does a short convolution see?

    python examples/study.py                  # runs what is not done yet, writes runs/reach/report/index.html
    matmix study examples/study.py --seeds 5  # the same grid from the shell, with more seeds

A study is data: tasks, mixers and seeds. Each run is a folder that goes on where it was stopped; what the report shows
is read from those folders alone, so it can be read here too.
"""

from __future__ import annotations

from pathlib import Path

from matmix.experiments.report import write_report
from matmix.experiments.run import Result
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask

study = Study(
    name="reach",
    tasks=(StudyTask("digits", {"dim": 16, "depth": 1}, recipe={"steps": 120, "eval_every": 40}),),
    mixers=("attention", "sep_conv(kernel=3)", "sep_conv(kernel=15)", "identity"),
    seeds=(0, 1),
    reference="attention",
    note="How far must a token look to tell digits apart?",
)

if __name__ == "__main__":
    folder = Path("runs") / study.name
    run_study(study, folder)
    for run in study.runs():
        result = Result.read(folder / run.folder)
        assert result is not None
        print(f"{run.mixer:>20}, seed {run.seed}: accuracy {result.test['accuracy']:.3f}")
    print("report:", write_report(folder))
