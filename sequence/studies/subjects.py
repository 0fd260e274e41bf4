"""What can be an arm of `matmix study replace` here: models of time series, and the encoder of all other tasks."""

from __future__ import annotations

from typing import Any

from matmix.experiments.models import read
from matmix.experiments.registry import find_task, list_tasks
from matmix.experiments.replacement import Subject
from matmix.experiments.study import StudyTask
from sequence.data import reviews
from sequence.data.faults import BadData
from sequence.series.data.sets import PACKED, known
from sequence.series.models import list_series_models
from sequence.tasks.settings import EncoderSettings

GOALS = ("forecast", "imputation", "m4", "series-classification", "series-anomaly")
ENCODER = "encoder"


def _goal(data: str) -> tuple[str, str]:
    """Task and data of `imputation:ETTh1`; a name alone is to be forecast."""
    goal, colon, name = data.partition(":")
    return (goal, name) if colon and goal in GOALS else ("forecast", data)


def _is_series(data: str) -> bool:
    goal, name = _goal(data)
    tables = tuple(f".csv{end}" for end in PACKED)
    return goal not in ("forecast", "imputation") or known(name) is not None or name.endswith(tables)


def _series_task(model: str, data: str) -> StudyTask:
    goal, name = _goal(data)
    options: dict[str, Any] = {"architecture": model}
    if name:
        options["frequency" if goal == "m4" else "data"] = name
    return StudyTask(goal, options)


def _is_of_encoder(data: str) -> bool:
    if data not in list_tasks():
        return False
    found = find_task(data)
    return not isinstance(found, str) and issubclass(found, EncoderSettings)


def _encoder_task(model: str, data: str) -> StudyTask:
    options = dict(read(model)[2])
    base = options.pop("mixer", "attention")
    return StudyTask(data, options, surgery={"base": base})


series = Subject(
    models=lambda model: model.partition("(")[0] in list_series_models(),
    data=_is_series,
    task=_series_task,
    words=f"{', '.join(list_series_models())}, on ETTh1 and other published sets or a csv file; "
    f"TASK:NAME for another task than forecasts, of {', '.join(GOALS)}",
)
encoders = Subject(
    models=lambda model: model.partition("(")[0] == ENCODER,
    data=_is_of_encoder,
    task=_encoder_task,
    words='encoder, or encoder(mixer="ssd", dim=128, depth=4) with settings of the task, on a task by its name: '
    "listops, mqar, ...",
)


def _is_texts(data: str) -> bool:
    try:
        return bool(reviews.files_of(data)) and not _is_series(data)
    except BadData:
        return False


texts = Subject(
    models=lambda model: model.startswith("hf:"),
    data=_is_texts,
    # Padded to one length, so that arms of a fixed length are trained on what all others are.
    task=lambda model, data: StudyTask("text", {"architecture": model, "data": data, "length": 128, "pad": "length"}),
    words="hf:NAME of transformers, on a folder of texts with classes: train and test as csv or parquet, or SST-2",
)
