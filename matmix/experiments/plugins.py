"""Code from outside: a file or module whose import registers mixers (or defines tasks)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

IMPORTED: list[str] = []
"""What ``import_all`` imported into this process, in order."""


def import_code(source: str) -> ModuleType:
    """Import a Python file (``contrast.py``, ``lab/mixers.py``) or a module by its dotted name, once a process.

    Raises:
        ValueError: if there is no such file or module. Errors of the code itself come through.
    """
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name and source.split(".")[0] == error.name.split(".")[0]:
                raise ValueError(f"import {source!r}: no such module, and no file (those end in .py)") from None
            raise
    path = Path(source).resolve()
    if not path.is_file():
        raise ValueError(f"import {source!r}: there is no file {path}")
    name = f"_matmix_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_all(sources: Iterable[str]) -> None:
    """Import each of them, and note it: a run's own command names what was imported for it."""
    for source in sources:
        import_code(source)
        name = absolute(source)
        if name not in IMPORTED:
            IMPORTED.append(name)


def absolute_task(name: str, folder: Path | None = None) -> str:
    """The name of a task likewise: `file.py:Class` with the full path."""
    source, colon, attribute = name.rpartition(":")
    return f"{absolute(source, folder)}:{attribute}" if colon else name


def absolute(source: str, folder: Path | None = None) -> str:
    """The source as any process in any folder understands it: files by their full path."""
    return str((folder or Path.cwd()).joinpath(source).resolve()) if source.endswith(".py") else source
