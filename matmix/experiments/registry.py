"""Tasks by name: those of installed packages, those that a file registers, and classes named where they stand.

matmix train digits                              an installed package has it (entry-point group `matmix.tasks`)
matmix train parity --import lab/parity.py       the file registers it: @register_task("parity")
matmix train lab/parity.py:Parity                a class in a file
matmix train lab.parity:Parity                   a class in a module
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint
from typing import ClassVar, TypeVar, get_origin

from matmix.experiments.entries import entries
from matmix.experiments.extras import advice
from matmix.experiments.plugins import TASKS, NotNamed, import_code
from matmix.experiments.task import Task
from matmix.ranges import shown
from matmix.settings import check_defaults
from matmix.spec import hint, place

_TaskT = TypeVar("_TaskT", bound=type[Task])


def register_task(name: str) -> Callable[[_TaskT], _TaskT]:
    """Give a task class a name, for this process and for those that import the same file::

        @register_task("parity")
        @dataclass(frozen=True)
        class Parity(TensorTask):
            ...

    Raises:
        ValueError: for a name that is taken, or that the command line would read as something else.
    """
    if not name.replace("-", "_").isidentifier():
        raise ValueError(f"register_task: a name is letters, digits, '_' and '-', got {name!r}")
    if name in _entries():
        raise ValueError(f"register_task: the name {name!r} is taken by {_entries()[name].value}")

    def enrol(cls: _TaskT) -> _TaskT:
        if name in TASKS and place(TASKS[name]) != place(cls):  # one file may be imported under two names
            raise ValueError(f"register_task: the name {name!r} is taken by {' in '.join(place(TASKS[name]))}")
        TASKS[name] = _task(cls, name)
        return cls

    return enrol


def settings_of(name: str) -> list[str]:
    """The names of a task's settings.

    Raises:
        ValueError: as `task_class`.
    """
    return [field.name for field in dataclasses.fields(task_class(name))]  # type: ignore[arg-type]  # a dataclass


def list_tasks() -> list[str]:
    """Names of all installed and registered tasks."""
    return sorted({*_entries(), *TASKS})


def find_task(name: str) -> type[Task] | str:
    """The class behind a name of `list_tasks()`, or in words why it cannot be imported."""
    try:
        return task_class(name)
    except (ImportError, ValueError) as error:
        return str(error)


def task_class(name: str) -> type[Task]:
    """The class behind the name of a task, `file.py:Class` or `package.module:Class`.

    Raises:
        ValueError: for an unknown name (the message lists the close ones), something that cannot be imported, or a
            class that is no whole task; the message says what is missing.
        NotNamed: (a ValueError) for a file or module that only data name (see `plugins.data_only`).
    """
    if not isinstance(name, str):
        raise ValueError(f"task must be a name, got {shown(name)}")
    if name in TASKS:
        return check_class(TASKS[name])
    if name in _entries():
        entry = _entries()[name]
        try:
            return check_class(_task(entry.load(), name))
        except ImportError as error:
            package = entry.dist.name if entry.dist is not None else "matmix"
            raise ValueError(f"task {name!r} cannot be imported: {advice(error, package)}") from error
    source, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"unknown task {shown(name)}{hint(name, list_tasks())}")
    try:
        found = getattr(import_code(source), attribute)
    except NotNamed:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"task {name!r} cannot be imported: {error}") from error
    return check_class(_task(found, name))


def check_class(cls: type[Task]) -> type[Task]:
    """The class, if it is a whole task.

    Raises:
        ValueError: says which line or method is missing.
    """
    where = f"task {cls.__module__.removeprefix('_matmix_')}.{cls.__qualname__}"
    own = inspect.get_annotations(cls)
    fields = {name for name, kind in own.items() if not _is_class_variable(kind)}
    inherited = {field.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)
                 for field in dataclasses.fields(base)}  # fmt: skip
    frozen = cls.__dict__.get("__dataclass_params__")
    if frozen is None and (fields or inherited & set(vars(cls)) or not dataclasses.is_dataclass(cls)):
        raise ValueError(f"{where} is no dataclass of its own: put the line @dataclass(frozen=True) above class "
                         f"{cls.__name__}, or its settings are not read")  # fmt: skip
    if frozen is not None and not frozen.frozen:
        raise ValueError(f"{where} can be changed after it is made: write @dataclass(frozen=True) above class "
                         f"{cls.__name__}")  # fmt: skip
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}: write {'them' if len(missing) > 1 else 'it'}, "
                         "as matmix.experiments.task.Task says")  # fmt: skip
    if not isinstance(getattr(cls, "metric", None), str):
        raise ValueError(f'{where} names no metric: write metric: ClassVar[str] = "...", a key of metrics()')
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    wrong = {alias: setting for alias, setting in cls.aliases.items() if setting not in known}
    if wrong:
        raise ValueError(f"{where}: aliases stand for settings, which it has not: {wrong}")
    needed = [field.name for field in dataclasses.fields(cls)  # type: ignore[arg-type]
              if field.default is field.default_factory is dataclasses.MISSING]  # fmt: skip
    if needed:
        raise ValueError(f"{where}: every setting has a default; {', '.join(needed)} has none")
    check_defaults(cls)
    return cls


def _task(found: object, name: str) -> type[Task]:
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"task {name!r} is not a subclass of matmix.experiments.task.Task")
    return found


def _is_class_variable(kind: object) -> bool:
    return kind is ClassVar or get_origin(kind) is ClassVar or (isinstance(kind, str) and "ClassVar" in kind)


@cache
def _entries() -> dict[str, EntryPoint]:
    return entries("matmix.tasks")
