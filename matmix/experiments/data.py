"""What a package can say about data sets that somebody has put into a folder.

A package names a function in the entry-point group `matmix.data`; `matmix data NAME --check FOLDER` calls it:

    def check(folder: Path) -> Iterable[Finding]:
        # The first line of its docstring says which data sets these are.
        yield Finding("pairs", "found", "pairs.tsv, 20,000 rows")
        yield Finding("pairs", "damaged", "pairs.tsv, line 7: 3 columns; allowed: 2")
        yield Finding("images", "missing", "get images.tar from https://...")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, NamedTuple

from matmix.experiments.entries import entries
from matmix.experiments.extras import advice
from matmix.spec import hint

Status = Literal["found", "missing", "damaged", "note"]


class Finding(NamedTuple):
    """One thing that is said about a folder."""

    part: str
    """What it is about, such as the name of a task."""
    status: Status
    text: str
    """What was found; of what is missing, which file to get from where; of what is damaged, file and line."""


Check = Callable[[Path], Iterable[Finding]]


def list_checks() -> list[str]:
    """Names of all that installed packages can check."""
    return sorted(_entries())


def find_check(name: str) -> Check:
    """The function behind a name of `list_checks()`.

    Raises:
        ValueError: for an unknown name, or one that cannot be imported.
    """
    entries = _entries()
    if name not in entries:
        raise ValueError(f"unknown data sets {name!r}{hint(name, sorted(entries))}")
    entry = entries[name]
    try:
        found: Check = entry.load()
    except ImportError as error:
        package = entry.dist.name if entry.dist is not None else "matmix"
        raise ValueError(f"data {name!r} cannot be checked: {advice(error, package)}") from error
    return found


def _entries() -> dict[str, EntryPoint]:
    return entries("matmix.data")
