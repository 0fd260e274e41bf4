"""Everything that decides the result of a run, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from matmix.experiments.operation import Surgery
from matmix.experiments.origin import origins
from matmix.experiments.plugins import IMPORTED, absolute_task, fingerprints
from matmix.experiments.registry import task_class
from matmix.experiments.task import Recipe, Task, build, changed
from matmix.ranges import Count, Seed
from matmix.settings import Settings

UNUSED: dict[str, Any] = {"compile": False}
"""Settings of the recipe that runs were made without at first, as they are where a run does without."""


class RunError(RuntimeError):
    """The run folder cannot be used: locked by another process, or made by another configuration."""


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """Everything that decides the result of a run. `options` and `recipe` may name some settings only: the defaults
    of the task are filled in at once, so a stored configuration never depends on what the defaults are later."""

    task: str
    mixer: str
    seed: Seed = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    threads: Count = 1
    """Of torch, in each process. Sums are divided among them, so another number changes last digits."""
    plugins: dict[str, str] = dataclasses.field(default_factory=dict)
    """Checksums of the imported files and modules (see `plugins.fingerprints`); the code behind the task and the mixers
    is added (see `origin.origins`)."""
    surgery: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Where the mixer comes into the model after the task has built it (see `operation.Surgery`); {}: the task builds
    its model around the mixer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", absolute_task(self.task))
        cls = task_class(self.task)
        options, recipe = _filled(cls, self.options, self.recipe)
        object.__setattr__(self, "plugins", _with(self.plugins, origins(cls, self.mixer)))
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "recipe", recipe)
        if self.surgery:
            surgery = build(Surgery, self.surgery)
            object.__setattr__(self, "surgery", _jsonable(dataclasses.asdict(surgery)) if surgery.level else {})

    def make_task(self) -> Task:
        return build(task_class(self.task), self.options)

    def make_recipe(self) -> Recipe:
        return build(Recipe, self.recipe)

    def make_surgery(self) -> Surgery:
        return build(Surgery, self.surgery)

    def make_model(self, task: Task, *, begun: bool = False, notes: list[str] | None = None) -> nn.Module:
        """The model of a task of these settings; `begun` says that its weights come from a file afterwards, `notes`
        gets what was done to it."""
        surgery = self.make_surgery()
        if not surgery.level:
            return task.model(self.mixer, self.seed)
        return surgery.model(task, self.mixer, self.seed, self.make_recipe(), begun=begun, notes=notes)

    def to_json(self) -> dict[str, Any]:
        """Without surgery it is not named, nor is what else came later, where it is not used: so runs that were made
        before there was any are the same runs."""
        plain: dict[str, Any] = _jsonable(vars(self))  # `asdict` takes 0.7 ms for each of thousands of runs
        plain["recipe"] = {
            name: value for name, value in plain["recipe"].items() if (name, value) not in UNUSED.items()
        }
        return plain if self.surgery else {name: value for name, value in plain.items() if name != "surgery"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """Of `to_json`, or a file: what a recipe does not name was not used, whatever the task's default is now."""
        recipe = data.get("recipe", {})
        return build(cls, {**data, "recipe": {**UNUSED, **recipe} if isinstance(recipe, dict) else recipe})

    @property
    def key(self) -> str:
        """Twelve hex digits that identify the run."""
        return key_of(self.to_json())

    @property
    def name(self) -> str:
        """What a person calls the run: task, model, mixer and seed; the first digits of the key tell settings apart."""
        words = [self.task.rpartition("/")[2], self.make_task().title(), self.mixer, f"seed-{self.seed}"]
        return f"{slug('-'.join(filter(None, words)))[:80].encode()[:120].decode(errors='ignore')}-{self.key[:6]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def check_plugins(self, *, all_here: bool = True) -> None:
        """Raise `RunError` where a file that was imported here has other contents than the run was made for, or, if
        they must be `all_here`, was not imported."""
        here = {**fingerprints(IMPORTED), **origins(task_class(self.task), self.mixer)}
        for name, checksum in self.plugins.items():
            if here.get(name) != checksum and checksum not in here.values() and (all_here or name in here):
                state = "has changed since this run was made" if name in here else "is not imported here"
                raise RunError(f"{name} {state}: import the same file, or take another folder for a new run")

    def command(self, folder: Path | str) -> str:
        """The shell command that repeats this run in a folder that is not `folder`, where it was done.

        It names what differs from the defaults, and the files that were imported into this process.
        """
        bare = RunConfig(self.task, self.mixer, self.seed)
        words = ["matmix", "train", self.task, *(("--mixer", self.mixer) if self.mixer else ())]
        words += ["--seed", str(self.seed), *(("--threads", str(self.threads)) if self.threads != 1 else ())]
        same_task = RunConfig(self.task, self.mixer, self.seed, self.options)
        for group, mine, default in (
            ("task", self.options, bare.options),
            ("recipe", self.recipe, same_task.recipe),
            ("surgery", self.surgery, _jsonable(dataclasses.asdict(Surgery()))),
        ):
            for name, value in changed(mine, default).items():
                words += _flag(f"{group}.{name}", value)
        sources = [source for source in IMPORTED if set(fingerprints([source])) & set(self.plugins)]
        words += [word for source in sources for word in ("--import", source)]
        return shlex.join([*words, "--out", str(_another(Path(folder), self.name))])


def _with(plugins: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    """Plugins, and those of others that are not among them by name or by contents."""
    new = {name: text for name, text in more.items() if name not in plugins and text not in plugins.values()}
    return {**plugins, **new}


def key_of(config: dict[str, Any]) -> str:
    """The key of a run from its configuration as JSON, which need not be built for it."""
    return hashlib.sha256(_dump(config)).hexdigest()[:12]


def _filled(cls: type[Task], options: dict[str, Any], recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings of a task and its recipe, of those that are given."""
    if _filled_before is None:
        return _fill(cls, options, recipe)
    try:
        given = cls, json.dumps([options, recipe])
    except TypeError:  # what has no JSON is refused by the task, or turned into what has
        return _fill(cls, options, recipe)
    if given not in _filled_before:
        _filled_before[given] = json.dumps(_fill(cls, options, recipe))
    filled: tuple[dict[str, Any], dict[str, Any]] = tuple(json.loads(_filled_before[given]))
    return filled


_filled_before: dict[tuple[type[Task], str], str] | None = None


@contextmanager
def filling_once() -> Iterator[None]:
    """Within, equal settings are filled in once: the runs of a study are many more than its settings, and each takes
    half a millisecond. Not for good: a recipe may follow the size of a file, which may change."""
    global _filled_before
    before, _filled_before = _filled_before, {}
    try:
        yield
    finally:
        _filled_before = before


def _fill(cls: type[Task], options: dict[str, Any], recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    task = build(cls, options)
    whole = build(Recipe, {**dataclasses.asdict(task.recipe()), **recipe})
    return _jsonable(dataclasses.asdict(task)), _jsonable(dataclasses.asdict(whole))  # type: ignore[call-overload]


def _another(folder: Path, name: str) -> Path:
    """A folder for a repetition: `repeat/NAME`, with a number where that is where the run was done."""
    if folder.parent.name == "repeat" and folder.name.startswith(name):
        tail = folder.name.removeprefix(name)
        number = int(tail[1:]) + 1 if tail[1:].isdigit() else 2
        return Path("repeat", f"{name}-{number}")
    return Path("repeat", name)


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
