"""Wrong values for every setting of tasks, recipes, studies and commands: taken as they are, or refused clearly."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from matmix.experiments.cli import main
from matmix.experiments.config import RunConfig
from matmix.experiments.operation import Surgery
from matmix.experiments.recipe import Recipe
from matmix.experiments.registry import list_tasks, task_class
from matmix.experiments.study import Study, StudyArm, StudyTask
from matmix.experiments.task import build
from matmix.surgery import DistillRecipe, Stage
from sequence.encoder import Encoder
from sequence.series.models.base import list_series_models, series_model_class
from tests.campaigns.clear import Tally, unclear_text
from tests.campaigns.wrong_values import WRONG

Call = tuple[str, str, Any, Callable[[], Any]]
"""What is called, the setting, the value, and the call."""
NEEDED: dict[type[Any], dict[str, Any]] = {
    RunConfig: {"task": "digits", "mixer": "identity"},
    Study: {"name": "s", "tasks": (StudyTask("digits"),), "mixers": ("identity",)},
    StudyArm: {"name": "a"},
    StudyTask: {"task": "digits"},
    Stage: {"steps": 3},
}
_SPEC = ("spec", "mixer")
ALSO = {"mixer": _SPEC, "decoder_mixer": _SPEC, "channel_mixer": _SPEC, "tasks": ("task",), "mixers": ("study",),
        "surgery": ("Surgery",), "recipe": ("Recipe",), "options": ("Digits",)}  # fmt: skip
"""A name that an error may say instead: of a table, whose settings it is."""


def settings() -> Iterator[Call]:
    classes = [task_class(name) for name in list_tasks() if ":" not in name]
    for cls in (*classes, Recipe, Surgery, DistillRecipe, *NEEDED):
        for field in dataclasses.fields(cls):
            for value in WRONG:
                given = {**NEEDED.get(cls, {}), field.name: value}
                yield cls.__name__, field.name, value, lambda cls=cls, given=given: cls(**given)


def models() -> Iterator[Call]:
    for name in list_series_models():
        cls = series_model_class(name)
        for option in inspect.signature(cls).parameters:
            for value in WRONG:
                given = {"length": 16, "channels": 2, "horizon": 4, option: value}
                yield name, option, value, lambda cls=cls, given=given: cls(**given)
    small = {
        "embedding": lambda: nn.Linear(3, 8), "mixer": "identity", "dim": 8, "depth": 2, "grid": (4,), "head": "class",
        "outputs": 3,
    }  # fmt: skip
    for option in inspect.signature(Encoder).parameters:
        for value in WRONG:
            yield "Encoder", option, value, lambda given={**small, option: value}: Encoder(**given)  # type: ignore[misc]


def campaign(calls: list[Call]) -> Tally:
    tally = Tally()
    for owner, name, value, call in calls:
        try:
            with torch.device("meta"):
                made = call()
        except Exception as error:
            plain = isinstance(value, str | int | float) or value is None
            names = [name, *ALSO.get(name, ())]
            tally.refused(error, f"{owner}.{name}={value!r:.60}", names, [value] if plain else [])
            continue
        taken = getattr(made, name, value)
        filled = owner == "RunConfig" and value == {}  # the defaults of the task are filled in at once
        if isinstance(made, nn.Module) or taken is value or taken == value or filled:
            tally.right += 1
        else:
            tally.wrong("turned into another value", f"{owner}.{name}={value!r:.60} became {taken!r:.60}")
    return tally


def sample(calls: Iterator[Call], count: int, seed: int) -> list[Call]:
    return random.Random(seed).sample(list(calls), count)


def test_some_wrong_settings_are_refused_clearly() -> None:
    tally = campaign(sample(settings(), 1500, 0))
    assert not tally.unclear, str(tally)
    assert tally.clear > 1000  # and not all are right


@pytest.mark.large
@pytest.mark.parametrize("seed", range(2))
def test_wrong_settings_are_refused_clearly(seed: int) -> None:
    tally = campaign(sample(settings(), 10_000, seed + 1))
    print(tally)
    assert not tally.unclear, str(tally)


@pytest.mark.large
def test_wrong_options_of_sequence_models_are_refused_clearly() -> None:
    tally = campaign(list(models()))
    print(tally)
    # Options that hang on each other name the one that does not fit.
    assert not tally.unclear, str(tally)


@pytest.mark.parametrize(
    ("cls", "data", "says"),
    [
        (Recipe, {"steps": 2.5}, "Recipe.steps must be a whole number"),
        (Recipe, {"steps": True}, "Recipe.steps must be a whole number"),
        (Recipe, {"steps": "3"}, "Recipe.steps must be a whole number"),
        (Recipe, {"lr": float("inf")}, "Recipe.lr must be a finite number"),
        (Recipe, {"betas": [0.9, 0.99, 0.999]}, "Recipe.betas must be a pair"),
        (Recipe, {"clip": -1}, "Recipe.clip must be a finite number"),
        (Recipe, {"checkpointing": "false"}, "Recipe.checkpointing must be True or False, got 'false'"),
        (Recipe, {"weight_decay": -5}, "Recipe.weight_decay must be a finite number"),
        (Recipe, {"eval_batch_size": -1}, "Recipe.eval_batch_size must be a whole number"),
        (Recipe, [1], "settings of Recipe must be a table of names and values"),
        (StudyTask, {}, "StudyTask.task must be given"),
        (Study, {"name": "s", "tasks": (StudyTask("digits"),), "mixers": "identity"}, "Study.mixers must be a tuple"),
        (Study, {"name": "s", "tasks": (StudyTask("digits"),), "mixers": ["a"], "seeds": 3}, "Study.seeds must be a"),
    ],
)
def test_files_of_settings_are_not_turned_into_other_kinds(cls: type[Any], data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        build(cls, data)


def test_whole_numbers_stand_for_others_and_lists_of_files_for_tuples() -> None:
    found = build(Recipe, {"lr": 1, "betas": [0, 0.5], "groups": ["bias lr=1"]})
    assert found == Recipe(lr=1, betas=(0, 0.5), groups=("bias lr=1",))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("train digits --mixer identity --task.dim -4", "dim", -4),
        ("train digits --mixer identity --task.dim x", "task.dim", "x"),
        ("train digits --mixer identity --task.position foo", "task.position", "foo"),
        ("train digits --mixer identity --recipe.lr nan", "lr", float("nan")),
        ("train digits --mixer identity --recipe.stepz 3", "recipe.stepz", 3),
        ("train digits --mixer identity --seed -1", "seed", -1),
        ("study quickstart --seeds 0", "seeds", 0),
        ("cost hydra --dim x", "dim", "x"),
        ("cost hydra --dim 0", "dim", 0),
        ("show hydra --dim x --out a.png", "dim", "x"),
    ],
)
def test_wrong_words_of_commands_are_one_clear_line(words: str, name: str, value: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("matmix: ") and said.count("\n") == 1, said
    assert unclear_text(said, [name], [value]) in ("", "does not say what is allowed" * ("stepz" in words)), said
