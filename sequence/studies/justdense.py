"""JustDense's own grid, with the controls that it lacks: `matmix study justdense`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from matmix.experiments.operation import ABLATIONS, DEFAULT
from matmix.experiments.registry import task_class
from matmix.experiments.study import Study, StudyArm, StudyTask
from sequence.series.models.s_mamba import scan_spec
from sequence.series.tasks.settings import Protocol

FORECAST = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "ECL", "Weather", "Traffic")
IMPUTATION = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "ECL", "Weather")
CLASSIFICATION = (
    "EthanolConcentration", "FaceDetection", "Handwriting", "Heartbeat", "JapaneseVowels", "PEMS-SF",
    "SelfRegulationSCP1", "SelfRegulationSCP2", "SpokenArabicDigits", "UWaveGestureLibrary",
)  # fmt: skip
ANOMALY = ("SMD", "MSL", "SMAP", "SWaT", "PSM")
M4 = ("Yearly", "Quarterly", "Monthly", "Weekly", "Daily", "Hourly")
RATES = (0.125, 0.25, 0.375, 0.5)
HORIZONS = (96, 192, 336, 720)
MODELS = ("transformer", "autoformer", "patchtst", "itransformer", "mamba", "s_mamba", "moderntcn")
SWAPS = {
    "transformer": ("justdense(heads={heads})", "encoder.*"),
    "autoformer": ("justdense", "encoder.*.mixer"),
    "patchtst": ("justdense(heads={heads})", "encoder.*"),
    "itransformer": ("justdense", "encoder.*"),
    "mamba": ("justdense(wrapper='mamba', d_conv=1)", "mixer"),
    "s_mamba": (scan_spec("justdense(wrapper='mamba')"), "encoder.*"),
    "moderntcn": ("justdense", "all"),
}
"""The spec of the published matrices and the sites where they stand, by model; of ModernTCN neither was published."""
HEADS = {"transformer": 8, "patchtst": 2}
"""Where no script says more."""
Goal = Literal["forecast", "m4", "imputation", "classification", "anomaly"]


def justdense(
    goals: Annotated[tuple[Goal, ...], tyro.conf.arg(help="Of the five tasks.")] = (
        "forecast",
        "m4",
        "imputation",
        "classification",
        "anomaly",
    ),
    models: Annotated[tuple[str, ...], tyro.conf.arg(help="Of the seven, as specs.")] = MODELS,
    horizons: Annotated[tuple[int, ...], tyro.conf.arg(help="Of forecasts.")] = HORIZONS,
    protocol: Annotated[Protocol, tyro.conf.arg(help="See docs/time-series.md.")] = "published",
    folder: Annotated[str, tyro.conf.arg(help="Where data sets are; else the variable MATMIX_DATA says.")] = "",
    absent: Annotated[Literal["leave", "stop"], tyro.conf.arg(help="What is done without a data set's files.")] = (
        "leave"
    ),
    margin: Annotated[float, tyro.conf.arg(help="The largest relative change that does not matter.")] = 0.01,
) -> Study:
    """Seven models on 29 benchmarks, each with its mixer, with JustDense's matrix, and with what that study lacks.

    Its arms are "default" and "justdense"; beside them stand a model without any mixing ("identity"), which is close to
    justdense, and a dense matrix that can mix ("dense"). Its seventh model is read out of its scripts: they name no
    ModernTCN, only its results. iTransformer comes twice, since the study exchanged the perceptron along a token's
    channels and called that the mixer: as "itransformer" attention goes, as in the study's first version; as
    "itransformer-channels" its perceptron goes, as in the one that was published.

    Sites and specs are the published ones: one matrix a head of the old mixer, in encoders only (`SWAPS`). Batches are
    those of the Time Series Library (32 on ETT), not the study's 128, which quartered the updates of every arm. Every
    run is ablated afterwards.

    Cost: a run of iTransformer on ETTh1 is a minute of one core, one of Transformer hours; ten horizons and rates of 29
    benchmarks are for a cluster. Data sets whose files are not here are left out, and the note says which; where none
    is here the forecasts are planned, and the first run says which file to get.
    """
    tasks: list[StudyTask] = []
    gone: list[str] = []
    for goal in goals:
        for options, label, data in _benchmarks(goal, horizons):
            if folder:
                options = {**options, "folder": folder}
            task = goal if goal in ("forecast", "m4", "imputation") else f"series-{goal}"
            if _is_here(task, options):
                tasks += _tasks(task, models, {**options, "protocol": protocol}, label, data)
            else:
                gone.append(label)
    if gone and absent == "stop":
        raise ValueError(f"folder: there are no files of {', '.join(gone)}")
    for options, label, data in _benchmarks("forecast", horizons) if not tasks else ():
        tasks += _tasks("forecast", models, {**options, "protocol": protocol}, label, data)
    return Study(
        name="justdense",
        tasks=tuple(tasks),
        mixers=(DEFAULT, "justdense", "identity", "dense"),
        seeds=(0, 1, 2),
        reference=DEFAULT,
        margin=margin,
        note="Does a learned constant matrix do what mixers do, and does it do anything? "
        + (f"Left out without their files: {', '.join(gone)}." if gone else "All 29 benchmarks are here."),
    )


def _benchmarks(goal: str, horizons: tuple[int, ...]) -> list[tuple[dict[str, object], str, str]]:
    """Settings of the task, label and data set of each."""
    if goal == "forecast":
        return [({"data": d, "horizon": h}, f"{d} {h}", d) for d in FORECAST for h in horizons]
    if goal == "m4":
        return [({"frequency": name}, f"M4 {name}", "M4") for name in M4]
    if goal == "imputation":
        return [({"data": d, "rate": r}, f"{d} imputed {r:g}", f"{d} imputed") for d in IMPUTATION for r in RATES]
    names = CLASSIFICATION if goal == "classification" else ANOMALY
    return [({"data": name}, name, name) for name in names]


def _tasks(task: str, models: Sequence[str], options: dict[str, object], label: str, data: str) -> list[StudyTask]:
    """The models on a benchmark."""
    return [one for model in models for one in _of_model(task, model, options, label, data)]


def _of_model(task: str, model: str, options: dict[str, object], label: str, data: str) -> list[StudyTask]:
    """A model on a benchmark; iTransformer with two sites."""
    name = model.partition("(")[0]
    made: Any = task_class(task)(**{**options, "architecture": model})
    heads = made.script().sizes.get("heads", HEADS.get(name))
    spec, where = SWAPS[name]
    spec = spec.format(heads=heads)
    surgery = {"level": "module", "where": (where,), "keep_causal": False, "ablate": ABLATIONS}
    found = [
        StudyTask(
            task,
            {**options, "architecture": model},
            label=f"{label} {name}",
            specs={"justdense": spec},
            model=name,
            data=data,
            surgery=surgery,
        )
    ]
    if name == "itransformer":
        bare = f"{model.rstrip(')')}{', ' if '(' in model else '('}channel_mixer='identity')"
        marks = made.mark_count if task in ("forecast", "imputation") else 0
        found.append(
            StudyTask(
                task,
                {**options, "architecture": bare},
                label=f"{label} {name}-channels",
                specs={"justdense": f"justdense(heads={getattr(made, 'channels', 1) + marks})"},
                arms=(StudyArm(DEFAULT, DEFAULT, {"architecture": model}),),
                model=f"{name}-channels",
                data=data,
                surgery={**surgery, "where": ("*.mlp.mixer",)},
            )
        )
    return found


def _is_here(task: str, options: dict[str, object]) -> bool:
    """Whether the files of a benchmark are there."""
    try:
        made = task_class(task)(**options)
        made.found()
    except (OSError, ValueError, KeyError):
        return False
    return True
