"""Long-term forecasting: `matmix study forecast --data ETTh1 ETTh2 --models itransformer --mixers default hydra`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from matmix.experiments.study import Study, StudyArm, StudyTask
from sequence.series.saturation import SIMPLE
from sequence.series.tasks.settings import DEFAULT, Protocol

MIXERS = (DEFAULT, "justdense", "hydra")


def forecast(
    data: Annotated[tuple[str, ...], tyro.conf.arg(help="Data sets by name, or csv files.")] = ("ETTh1", "ETTh2"),
    models: Annotated[tuple[str, ...], tyro.conf.arg(help="Time-series models; specs, to set their sizes.")] = (
        "itransformer",
        "patchtst",
    ),
    horizons: Annotated[tuple[int, ...], tyro.conf.arg(help="Steps to forecast; 0 is the shortest published.")] = (0,),
    protocol: Annotated[Protocol, tyro.conf.arg(help="See docs/time-series.md.")] = "published",
    folder: Annotated[str, tyro.conf.arg(help="Where named data sets are; else the variable MATMIX_DATA says.")] = "",
    controls: Annotated[
        bool, tyro.conf.arg(help="Beside the others an arm without any mixing, and DLinear, which models have to beat.")
    ] = True,
) -> Study:
    """Every model with every mixer on every data set; "default" is the mixer that a model was published with.

    What a swap changes is small beside what a data set and a budget do, so the control without mixing is part of the
    study: where it comes as far as the others, mixing is not what the scores are about. And so is DLinear: of each data
    set the report says whether the best arm is further from it than seeds are apart.
    """
    tasks = []
    for name in data:
        for model in models:
            for horizon in horizons:
                options = {"data": name, "architecture": model, "horizon": horizon, "protocol": protocol}
                label = " ".join((Path(name).stem, model, *([str(horizon)] if horizon else ())))
                # DLinear has no mixer of its own: its "default" is that arm.
                arms: tuple[StudyArm, ...] = ()
                if controls and not model.startswith(SIMPLE):
                    arms = (StudyArm("identity"), StudyArm(SIMPLE, DEFAULT, {"architecture": SIMPLE}))
                folders = {"folder": folder} if folder else {}
                found = StudyTask("forecast", {**options, **folders}, label=label, arms=arms)
                tasks.append(replace(found, model=model, data=Path(name).stem))
    return Study(
        name="forecast",
        tasks=tuple(tasks),
        mixers=MIXERS,
        seeds=(0, 1, 2),
        reference=DEFAULT,
        note=f"Which mixer does a forecaster need, if any? Protocol: {protocol}; errors are of scaled values.",
    )
