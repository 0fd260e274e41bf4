"""Everything that decides the result of a run, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matmix.experiments.plugins import absolute_task
from matmix.experiments.registry import task_class
from matmix.experiments.task import Recipe, Task, build


class RunError(RuntimeError):
    """The run folder cannot be used: locked by another process, or made by another configuration."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run. `options` and `recipe` may name some settings only: the defaults
    of the task are filled in at once, so a stored configuration never depends on what the defaults are later."""

    task: str
    mixer: str
    seed: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", absolute_task(self.task))
        task = build(task_class(self.task), self.options)
        recipe = build(Recipe, {**dataclasses.asdict(task.recipe()), **self.recipe})
        object.__setattr__(self, "options", _jsonable(dataclasses.asdict(task)))  # type: ignore[call-overload]
        object.__setattr__(self, "recipe", _jsonable(dataclasses.asdict(recipe)))

    def make_task(self) -> Task:
        return build(task_class(self.task), self.options)

    def make_recipe(self) -> Recipe:
        return build(Recipe, self.recipe)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        return build(cls, data)

    @property
    def key(self) -> str:
        """Twelve hex digits that identify the run."""
        return hashlib.sha256(_dump(self.to_json())).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What a person calls the run: task, model, mixer and seed; the first digits of the key tell settings apart."""
        words = [self.task.rpartition("/")[2], self.make_task().title(), self.mixer, f"seed-{self.seed}"]
        return f"{slug('-'.join(filter(None, words)))[:80]}-{self.key[:6]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def command(self, folder: Path | str, imports: Iterable[str] = ()) -> str:
        """The shell command that repeats this run, naming only what differs from the defaults, after these imports."""
        bare = RunConfig(self.task, self.mixer, self.seed)
        words = ["matmix", "train", self.task, *(("--mixer", self.mixer) if self.mixer else ())]
        words += ["--seed", str(self.seed)]
        same_task = RunConfig(self.task, self.mixer, self.seed, self.options)
        for group, mine, default in (
            ("task", self.options, bare.options),
            ("recipe", self.recipe, same_task.recipe),
        ):
            for name in (name for name in mine if mine[name] != default[name]):
                words += _flag(f"{group}.{name}", mine[name])
        words += [word for source in imports for word in ("--import", source)]
        return shlex.join([*words, "--out", str(folder)])


def slug(text: str) -> str:
    """Text as part of the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "._=-" else "-" for letter in text).strip("-")


def _flag(name: str, value: Any) -> list[str]:
    """One setting as a command-line option."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        head, _, tail = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}.no-{tail}"]
    return [f"--{name}", *(str(part) for part in (value if isinstance(value, list) else [value]))]


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
