"""A study over any model: `matmix study replace --models itransformer timm:vit_tiny_patch16_224 --data ETTh1 PHOTOS`.

Which task trains which model on which data is said by packages, through the entry-point group `matmix.subjects`: each
is a `Subject`. The arms are mixers, or controls of `matmix.surgery`, put into the model that the task has built.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from matmix.experiments.entries import entries
from matmix.experiments.extras import advice
from matmix.experiments.operation import ABLATIONS, DEFAULT
from matmix.experiments.registry import settings_of
from matmix.experiments.study import Study, StudyTask, run_folder
from matmix.experiments.task import Recipe
from matmix.spec import unknown_option

MIXERS = (DEFAULT, "identity", "elementwise", "dense", "justdense", "mean_matrix", "pooling", "hydra")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What models and data a package can join in a task of its own."""

    models: Callable[[str], bool]
    """Whether this is a model of its kind."""
    data: Callable[[str], bool]
    """Whether these are data for such models."""
    task: Callable[[str, str], StudyTask]
    """The task of a model on data: its name, its settings, and the mixer it is built with where it has none."""
    words: str
    """What models and data these are, for a person who named others."""


@cache
def subjects() -> dict[str, Subject]:
    """Those of the installed packages that can be imported, by name."""
    found: dict[str, Subject] = {}
    for entry in entries("matmix.subjects").values():
        try:
            found[entry.name] = entry.load()
        except ImportError as error:
            why = advice(error)
            found[entry.name] = Subject(lambda _: False, lambda _: False, _none, f"nothing, since {why}")
    return found


def _none(model: str, data: str) -> StudyTask:
    raise ValueError(f"no task for {model!r} on {data!r}")


def replace(
    models: Annotated[tuple[str, ...], tyro.conf.arg(help="Series models, image models (timm:NAME), hf:NAME.")] = (
        "itransformer",
        "patchtst(dim=128, hidden=128, depth=1, heads=4)",
    ),
    data: Annotated[tuple[str, ...], tyro.conf.arg(help="Each model is trained on those of its kind.")] = (
        "ETTh1",
        "ETTh2",
    ),
    level: Annotated[
        Literal["module", "matrix"],
        tyro.conf.arg(help="Whole mixing modules go, or their matrix alone: projections stay then."),
    ] = "module",
    where: Annotated[tuple[str, ...], tyro.conf.arg(help="Sites, as in `matmix.surgery.select`.")] = ("all",),
    prefix: Annotated[
        Literal["joined", "aside"], tyro.conf.arg(help="Class tokens: part of the sequence, or aside.")
    ] = "joined",
    settings: Annotated[
        tuple[str, ...], tyro.conf.arg(help="NAME=VALUE, of every task that has it: protocol=published lookback=336.")
    ] = (),
    training: Annotated[tuple[str, ...], tyro.conf.arg(help="NAME=VALUE of every recipe: lr=1e-3 steps=500.")] = (),
    tune: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Trials of every arm, chosen on validation: lr=1e-4 lr=1e-3 lr=1e-3,weight_decay=0."),
    ] = (),
    start: Annotated[
        str, tyro.conf.arg(name="from", help="Weights to start from: a file, or the folder of a study with this grid.")
    ] = "",
    init: Annotated[
        Literal["fresh", "projected"], tyro.conf.arg(help="New matrices begin anew, or nearest to the old ones.")
    ] = "fresh",
    distill: Annotated[int, tyro.conf.arg(help="Steps in which new modules first learn what the old ones give.")] = 0,
    margin: Annotated[float, tyro.conf.arg(help="The largest relative change that does not matter.")] = 0.01,
) -> Study:
    """Does a model need its mixer? Every model with every arm in its place; "default" is the model as it is.

    All arms of a model have the same data order, steps, evaluations, trials of the recipe and, outside of what is
    replaced, the same initial weights. A trained model is scored again with its matrices at zero, on the diagonal, with
    their rows shuffled and at their mean, and on inputs in another order: what it owes to its matrices is what it
    loses.
    """
    surgery: dict[str, Any] = {"level": level, "where": where, "prefix": prefix, "init": init, "distill": distill}
    surgery["ablate"] = ABLATIONS
    changed, recipe = _values(settings, "settings"), _values(training, "training")
    _check_recipe(recipe, "training")
    tuning = {trial: _values(trial.split(","), "tune") for trial in tune}
    for changes in tuning.values():
        _check_recipe(changes, "tune")
    tasks, met = [], set()
    for model, one, subject in _pairs(models, data):
        task = subject.task(model, one)
        known = settings_of(task.task)
        mine = {name: value for name, value in changed.items() if name in known}
        met |= set(mine)
        label = " ".join((Path(one).name.partition(".")[0], _called(model, models)))
        begun = {"weights": _weights(start, label)} if start else {}
        tasks.append(
            dataclasses.replace(
                task,
                options={**task.options, **mine},
                recipe={**task.recipe, **recipe},
                label=label,
                model=_called(model, models),
                data=Path(one).name.partition(".")[0],
                surgery={**task.surgery, **surgery, **begun},
            )
        )
    for name in changed.keys() - met:
        known = sorted({one for task in tasks for one in settings_of(task.task)})
        raise ValueError(unknown_option("settings", name, known, "setting"))
    return Study(
        name="replace",
        tasks=tuple(tasks),
        mixers=MIXERS,
        seeds=(0, 1, 2),
        tuning=tuning,
        reference=DEFAULT,
        margin=margin,
        note=f"Does the model need its mixer? Replaced at level {level!r}.",
    )


def _pairs(models: Sequence[str], data: Sequence[str]) -> list[tuple[str, str, Subject]]:
    """Every model on the data of its kind.

    Raises:
        ValueError: for a model without data, or data without a model.
    """
    found = [
        (model, one, subject)
        for one in data
        for model in models
        for subject in subjects().values()
        if subject.models(model) and subject.data(one)
    ]
    for word, names, at in (("models", models, 0), ("data", data, 1)):
        for name in names:
            if not any(pair[at] == name for pair in found):
                kinds = "".join(f"\n  {kind}: {subject.words}" for kind, subject in subjects().items())
                raise ValueError(
                    f"{word}: nothing joins {name!r} with what else is named; only these can be joined:{kinds}"
                )
    return found


def _called(model: str, models: Sequence[str]) -> str:
    """The name of a model; with its options where another one has the same."""
    name = model.partition("(")[0]
    return name if sum(other.partition("(")[0] == name for other in models) == 1 else model


def _weights(start: str, label: str) -> str:
    """The file that a run begins with: of a study, that of the untouched model on the same data, by seed."""
    path = Path(start)
    if not path.is_dir():
        return str(path.resolve())
    return str(path.resolve() / run_folder(label, DEFAULT, 0).replace("seed-0", "seed-{seed}") / "best.safetensors")


def _values(words: Sequence[str], option: str) -> dict[str, Any]:
    """Of NAME=VALUE, the values as Python literals where they are."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{option} are of the form NAME=VALUE, got {word!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def _check_recipe(values: dict[str, Any], option: str) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in values:
        if name not in known:
            raise ValueError(unknown_option(option, name, known, "value of a recipe"))
