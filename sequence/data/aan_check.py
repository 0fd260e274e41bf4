"""What is in a folder for the task retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matmix.experiments.data import Finding
from sequence.data import aan
from sequence.data.check import Rows
from sequence.data.release import ARCHIVE, URL, each


def check(folder: Path) -> Iterator[Finding]:
    """The three files of pairs, or those in the packed release, row by row."""
    there = set()
    for found in each(folder, list(aan.NAMES), aan.FOLDER):
        there.add(found.name)
        rows = Rows("retrieval")
        yield from rows.faults(aan.read(found.file, found.where, tokens="bytes", length=1, quoting=False))
        yield rows.summary(found.where, aan.ROWS[aan.NAMES[found.name]])
    missing = ", ".join(name for name in aan.NAMES if name not in there)
    if missing:
        where = f"the folder {aan.FOLDER} of {ARCHIVE} (8 GB, read as it is), {URL}"
        yield Finding("retrieval", "missing", f"{missing}: get {where}")
