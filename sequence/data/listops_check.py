"""What is in a folder for the task listops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matmix.experiments.data import Finding
from sequence.data import listops_files
from sequence.data.check import Rows
from sequence.data.release import ARCHIVE, URL, each


def check(folder: Path) -> Iterator[Finding]:
    """The three files, row by row: vocabulary, brackets, values."""
    splits = {name: split for split, name in listops_files.NAMES.items()}
    there = set()
    for found in each(folder, list(splits), listops_files.FOLDER):
        there.add(found.name)
        rows = Rows("listops")
        yield from rows.faults(listops_files.read(found.file, found.where))
        yield rows.summary(found.where, listops_files.ROWS[splits[found.name]])
    missing = ", ".join(name for name in splits if name not in there)
    if missing:
        where = f"the folder {listops_files.FOLDER} of {ARCHIVE}, {URL}"
        yield Finding("listops", "missing", f"{missing}: get {where}; without --data the lists are drawn")
