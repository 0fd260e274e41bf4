"""Code from outside: a file or module whose import registers mixers (or defines tasks).

Only who calls can name it: the command line, a study file of one's own, a script. What the files of a run or a study
name is data, and is not imported for that (`data_only`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

TASKS: dict[str, Any] = {}
"""The tasks that imported code has registered, by name (see ``registry.py``)."""
IMPORTED: list[str] = []
"""What ``import_all`` imported into this process, in order."""
_CONTENTS: dict[str, str] = {}
"""The checksum of what was imported, by absolute name: a file may change afterwards."""


_DATA_ONLY: ContextVar[bool] = ContextVar("data only", default=False)


class NotNamed(ValueError):
    """Code that only data name: it is not imported."""


@contextmanager
def data_only() -> Iterator[None]:
    """Within, code is used where it was imported before, and none is imported."""
    before = _DATA_ONLY.set(True)
    try:
        yield
    finally:
        _DATA_ONLY.reset(before)


@cache
def own_packages() -> frozenset[str]:
    """The packages that are installed with matmix: those that its entry points name."""
    try:
        named = [entry.value for entry in distribution("matmix").entry_points]
    except PackageNotFoundError:  # a checkout that was never installed
        named = []
    return frozenset({"matmix", *(re.split(r"[.:]", value)[0] for value in named)})


def import_code(source: str) -> ModuleType:
    """Import a Python file (``contrast.py``, ``lab/mixers.py``) or a module by its dotted name, once a process.

    Raises:
        ValueError: if there is no such file or module. Errors of the code itself come through.
        NotNamed: (a ValueError) within `data_only`, for code that is not imported yet and not matmix's own.
    """
    path = Path(source).resolve()
    name = _module_name(path) if source.endswith(".py") else source
    if name in sys.modules:
        return sys.modules[name]
    if _DATA_ONLY.get() and source.partition(".")[0] not in own_packages():
        raise NotNamed(f"{source} is not imported, since only data name it: name it with --import {source} "
                       "(in Python: matmix.experiments.plugins.import_all)")  # fmt: skip
    if not source.endswith(".py"):
        if not all(part.isidentifier() for part in source.split(".")):
            raise ValueError(f"import {source!r}: no such module, and no file (those end in .py)")
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name and source.split(".")[0] == error.name.split(".")[0]:
                raise ValueError(f"import {source!r}: no such module, and no file (those end in .py)") from None
            raise
    if not path.is_file():
        raise ValueError(f"import {source!r}: there is no file {path}")
    _CONTENTS[str(path)] = _checksum(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up
    before = _registered()
    try:
        spec.loader.exec_module(module)
        vars(module)["_matmix_registers"] = _registered() != before
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _registered() -> set[str]:
    from matmix.mixers import list_mixers

    return {*list_mixers(), *TASKS}


def import_all(sources: Iterable[str]) -> None:
    """Import each of them, and note it: a run's own command names what was imported for it."""
    for source in sources:
        import_code(source)
        name = absolute(source)
        if name not in IMPORTED:
            IMPORTED.append(name)


def import_named(sources: Iterable[str]) -> None:
    """Import what the command line names, and say so."""
    for source in sources:
        if not source.endswith(".py") or Path(source).is_file():
            say_imports([source])
        import_all([source])


def say_imports(sources: Iterable[str]) -> None:
    """Say once of each file or module that its code is run, beside the results, which go to stdout."""
    for source in filter(None, map(absolute, sources)):
        if source not in _SAID:
            _SAID.add(source)
            print(f"imports {source}", file=sys.stderr, flush=True)


_SAID: set[str] = set()


def fingerprints(sources: Iterable[str]) -> dict[str, str]:
    """Name -> checksum of the contents of each file or module: part of what a run is.

    A file that only describes a study (it defines ``study``, registers nothing and has no class) is left out: a mixer
    more in its list changes no run. What stands in other files that these import is not looked at.
    """
    found: dict[str, str] = {}
    for source in map(absolute, sources):
        if source.endswith(".py") and _describes(source):
            continue
        name = short = Path(source).name if source.endswith(".py") else source
        number = 2
        while name in found:
            name, number = f"{short} #{number}", number + 1
        found[name] = contents(source)
    return found


def contents(source: str) -> str:
    """The checksum of a file or module, as it was when this process imported it.

    Raises:
        ValueError: if there is no such file or module.
    """
    source = absolute(source)
    if source not in _CONTENTS:
        if source.endswith(".py"):
            if not Path(source).is_file():
                raise ValueError(f"import {source!r}: there is no file {source}")
            return _checksum(Path(source))
        origin = import_code(source).__file__
        path = Path(origin) if origin else None
        inside = path is not None and path.name == "__init__.py"
        files = sorted(path.parent.rglob("*.py")) if inside and path else [path] if path else []
        _CONTENTS[source] = _checksum(*files)
    return _CONTENTS[source]


def _checksum(*files: Path) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _describes(source: str) -> bool:
    module = sys.modules.get(_module_name(Path(source)))
    if module is None or not hasattr(module, "study") or getattr(module, "_matmix_registers", True):
        return False
    # A class may be what a task or a layer is made of, and what is set in other modules, or called, may change any.
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign, ast.AnnAssign)
    return all(
        (isinstance(one, kinds) and all(isinstance(target, ast.Name) for target in getattr(one, "targets", ())))
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in ast.parse(Path(source).read_bytes()).body
    )


def _module_name(path: Path) -> str:
    return f"_matmix_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def absolute_task(name: str, folder: Path | None = None) -> str:
    """The name of a task likewise: `file.py:Class` with the full path."""
    source, colon, attribute = name.rpartition(":")
    return f"{absolute(source, folder)}:{attribute}" if colon else name


def absolute(source: str, folder: Path | None = None) -> str:
    """The source as any process in any folder understands it: files by their full path."""
    return str((folder or Path.cwd()).joinpath(source).resolve()) if source.endswith(".py") else source
