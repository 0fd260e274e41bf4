"""What can be an arm of `matmix study replace` here: image classifiers, ours and timm's."""

from __future__ import annotations

from pathlib import Path

from matmix.experiments.models import read
from matmix.experiments.replacement import Subject
from matmix.experiments.study import StudyTask
from vision import list_models
from vision.data.folders import holds_images
from vision.data.sources import KINDS

TASKS = ("imagefolder", "cifar10")


def _takes(model: str) -> bool:
    try:
        package, name, _ = read(model)
    except ValueError:
        return False
    return package == "timm" or (package in ("", "vision") and name in list_models())


def _task(data: str) -> tuple[str, str]:
    """Task and data of `cifar10:FILE`; anything else is a source of images of one's own."""
    task, colon, name = data.partition(":")
    return (task, name) if task in TASKS and (colon or not Path(data).exists()) else ("imagefolder", data)


def _is_images(data: str) -> bool:
    task, name = _task(data)
    path = Path(name).expanduser()
    if task != "imagefolder" or name.startswith(tuple(KINDS)):
        return True
    if path.suffix == ".npz":
        return path.is_file()
    return path.is_dir() and holds_images(path)


def _study_task(model: str, data: str) -> StudyTask:
    task, name = _task(data)
    return StudyTask(task, {"architecture": model, **({"data": name} if name else {})})


images = Subject(
    models=_takes,
    data=_is_images,
    task=_study_task,
    words="models of `vision`, and timm:NAME, on folders of images, .npz files, cifar10 or hf:OWNER/NAME",
)
