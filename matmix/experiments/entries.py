"""What installed packages add, by name: a name is taken once."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint, entry_points


def entries(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in the order of names. Where two packages give one name it is matmix's own,
    else that of the first package in the alphabet; the other is passed over with a warning."""
    found: dict[str, EntryPoint] = {}
    every = entry_points(group=group)
    for entry in sorted(every, key=lambda each: (each.name, package(each) != "matmix", package(each))):
        taken = found.setdefault(entry.name, entry)
        if taken.value != entry.value:
            whose = f"{package(taken)} ({taken.value}) has taken it"
            warnings.warn(
                f"{group}: {entry.name!r} of {package(entry)} ({entry.value}) is passed over: {whose}", stacklevel=2
            )
    return found


def package(entry: EntryPoint) -> str:
    """The installed package that an entry point is of."""
    return entry.dist.name if entry.dist is not None else "matmix"
