"""Options of the commands that are about a task: its settings, its recipe, and the short names that it has for some."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from inspect import cleandoc
from typing import Annotated, Any, get_type_hints

import tyro

from matmix.experiments.cli_words import read as read_words
from matmix.experiments.output import complain
from matmix.experiments.plugins import import_named, say_imports
from matmix.experiments.registry import list_tasks, task_class
from matmix.experiments.task import Recipe, Task, changed
from matmix.settings import Settings

Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import")]


@dataclass(frozen=True, kw_only=True)
class OfTask(Settings):
    """Options of every command that is about a task, besides those of the task itself."""

    preset: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Named recipe, such as "published"; single values are changed by --recipe.lr and so on."""
    imports: Imports = ()
    """Python files or modules to import first; they register mixers or tasks."""


@dataclass(frozen=True)
class _AnyTask:
    """Stands for the task in `matmix train --help`, before one is named."""


def parse(
    words: Sequence[str], options: type[OfTask], command: str, text: str | None
) -> tuple[str, Any, dict[str, Any]]:
    """Task name, the options (with `.task` and `.recipe`), and what of the recipe differs from the task's own.

    They are read twice: the recipe follows from the settings of the task, so its defaults are known after the first
    time only.
    """
    import_named(named(words, "--import"))
    name = first(words)
    say_imports([(name or "").rpartition(":")[0]])
    if name is None and not {"-h", "--help"} & set(words):
        raise ValueError(f"name the task first: matmix {command} {{{','.join(list_tasks())}}} ...")
    cls: type[Any] = task_class(name) if name else _AnyTask
    short = {alias: Annotated[_type(cls, setting) | None, tyro.conf.arg(help=f"Short for --task.{_dashed(setting)}.")]
             for alias, setting in getattr(cls, "aliases", {}).items()}  # fmt: skip

    def read(task: Any, recipe: Recipe) -> Any:
        fields: list[Any] = [("task", cls, field(default=task)), ("recipe", Recipe, field(default=recipe))]
        fields += [(alias, hint, field(default=None)) for alias, hint in short.items()]
        given: Any = read_words(
            make_dataclass(command.title(), fields, bases=(options,), frozen=True, kw_only=True),
            words[1:] if name else words,
            prog=f"matmix {command} {name or '{' + ','.join(list_tasks()) + '}'}",
            about=cleandoc(text or ""),
        )
        typed = {setting: getattr(given, alias) for alias, setting in getattr(cls, "aliases", {}).items()}
        changes = {setting: value for setting, value in typed.items() if value is not None}
        return dataclasses.replace(given, task=dataclasses.replace(given.task, **changes))

    if name is None:
        read(cls(), Recipe())  # prints the help and leaves
    given: Any = read(cls(), cls().recipe())
    task: Task = given.task
    given = read(*task.named_recipe(given.preset))
    return str(name), given, changed(given.recipe, given.task.recipe())


def subject(
    words: Sequence[str], command: str, what: str, options: Callable[..., Any], about: str | None
) -> tuple[str, list[str]]:
    """What a command is about, which stands first, and the words behind it; files of `--import` are imported before.

    With no name there is the help of the options that hang on none, or a ValueError that says what is to be named.
    """
    sources, words = split(words, "--import")
    import_named(sources)
    name = first(words)
    if name is None:
        if {"-h", "--help"} & set(words):
            prog = f"matmix {command} {what.upper().replace(' ', '_')}"
            read_words(options, ["--help"], prog=prog, about=about)
        raise ValueError(f"name the {what} first: matmix {command} NAME ...")
    return name, list(words[1:])


def first(words: Sequence[str]) -> str | None:
    """The first word, where it is no option."""
    return words[0] if words and not words[0].startswith("-") else None


def named(words: Sequence[str], flag: str) -> list[str]:
    """The values behind an option, before the parser that depends on them exists."""
    return split(words, flag)[0]


def split(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The values behind an option, and the words without it."""
    found: list[str] = []
    rest: list[str] = []
    taking = False
    for word in words:
        taking = word == flag or (taking and not word.startswith("--"))
        if not taking:
            rest.append(word)
        elif word != flag:
            found.append(word)
    return found, rest


def say(task: Task) -> None:
    """What data were found; beside the results, which go to stdout."""
    text = task.found()
    if text:
        complain(text)


def _type(cls: type[Any], setting: str) -> Any:
    return get_type_hints(cls)[setting]


def _dashed(name: str) -> str:
    return name.replace("_", "-")
