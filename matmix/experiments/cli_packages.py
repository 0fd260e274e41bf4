"""Commands that installed packages add to `matmix`, through the entry-point group `matmix.commands`.

A command is a function from its words to the exit status; the first line of its docstring says what it does. Its module
is imported for `matmix --help`, so it imports what is heavy in the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from inspect import getdoc

from matmix.experiments.entries import entries
from matmix.experiments.extras import advice

Command = Callable[[Sequence[str]], int]


def list_commands() -> list[str]:
    """Names of the commands of all packages."""
    return sorted(_entries())


def find_command(name: str) -> Command:
    """The function behind a name of `list_commands()`.

    Raises:
        ValueError: where it cannot be imported; the message says what to install.
    """
    entry = _entries()[name]
    try:
        found: Command = entry.load()
    except ImportError as error:
        package = entry.dist.name if entry.dist is not None else "matmix"
        raise ValueError(f"{name} cannot be imported: {advice(error, package)}") from error
    return found


def describe(name: str) -> str:
    """What it does, in a line; or why it cannot run."""
    try:
        return (getdoc(find_command(name)) or "").partition("\n")[0]
    except ValueError as error:
        return str(error)


def _entries() -> dict[str, EntryPoint]:
    return entries("matmix.commands")
