"""What `matmix data lra --check FOLDER` says: each task's own check, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from matmix.experiments.data import Finding
from sequence.data.faults import BadData

PARTS: dict[str, str] = {
    "listops": "sequence.data.listops_check:check",
    "text": "sequence.data.reviews_check:check",
    "retrieval": "sequence.data.aan_check:check",
    "image": "sequence.data.cifar_check:check",
    "pathfinder": "sequence.data.pathfinder_check:check",
}
"""By task, the function from a folder to what is said about it: `(Path) -> Iterable[Finding]`."""
SHOWN = 5
"""Damaged rows of a file that are shown; the others are counted."""
T = TypeVar("T")


def lra(folder: Path) -> Iterator[Finding]:
    """The data of the Long Range Arena: the release, IMDb, CIFAR-10."""
    for part, place in PARTS.items():
        module, _, name = place.partition(":")
        try:
            yield from getattr(import_module(module), name)(folder)
        except BadData as error:  # a file that cannot be read on
            yield Finding(part, "damaged", words(error))


class Rows:
    """Goes through the rows of a file and keeps in mind how many are sound."""

    def __init__(self, part: str) -> None:
        self.part, self.sound, self.damaged = part, 0, 0

    def faults(self, rows: Iterable[T | BadData]) -> Iterator[Finding]:
        """Each damaged row, up to SHOWN, and then their number; also where the file cannot be read on."""
        try:
            for row in rows:
                if not isinstance(row, BadData):
                    self.sound += 1
                    continue
                self.damaged += 1
                if self.damaged <= SHOWN:
                    yield Finding(self.part, "damaged", words(row))
        except BadData as error:
            self.damaged += 1
            yield Finding(self.part, "damaged", words(error))
        if self.damaged > SHOWN:
            yield Finding(self.part, "damaged", f"{self.damaged - SHOWN:,} rows more")

    def summary(self, what: str, published: int) -> Finding:
        """What a file holds, beside what the release holds."""
        if not self.sound:
            return Finding(self.part, "damaged", f"{what}, no sound row; the published file has {published:,}")
        other = "" if self.sound + self.damaged == published else f"; the published file has {published:,}"
        return Finding(self.part, "found" if not other else "note", f"{what}, {self.sound:,} sound rows{other}")


def words(error: BadData) -> str:
    """The error without the name of the argument in front."""
    return str(error).removeprefix("data: ")
