"""What is in a folder for the task pathfinder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matmix.experiments.data import Finding
from sequence.data import pathfinder_release as release
from sequence.data.check import Rows
from sequence.data.faults import BadData
from sequence.data.pathfinder import SIZES
from sequence.data.release import ARCHIVE, URL

PART = "pathfinder"
LOOKED_AT = 500
"""Pictures of a folder that are decoded: all 200,000 would take a minute for each of twelve folders."""


def check(folder: Path) -> Iterator[Finding]:
    """Every size and length that is there: tables row by row, some of the pictures, and whether labels fit them."""
    there = 0
    for size in SIZES:
        for length in release.LEVELS:
            try:
                place = release.located(str(folder), size, length)
            except BadData:
                continue
            there += 1
            yield from _folder(place, size)
    if not there:
        where = f"the folders pathfinder32 and pathfinder128 of lra_release/lra_release in {ARCHIVE}, {URL}"
        yield Finding(PART, "missing", f"{where}; without --data the pictures are drawn")


def _folder(place: Path, size: int) -> Iterator[Finding]:
    rows, found = Rows(PART), list[release.Row]()
    yield from rows.faults(_kept(place, found))
    looked = Rows(PART)
    some = found[:: max(1, len(found) // LOOKED_AT)][:LOOKED_AT]
    yield from looked.faults(image for row in some if (image := release.picture(place, row, size)) is not None)
    measured = release.traced(place, size)
    if measured is not None and measured.broken:
        yield Finding(PART, "damaged", str(release.broken_copy(place, measured)).removeprefix("data: "))
    yield rows.summary(f"{place}, {len(some):,} of its pictures opened", release.PUBLISHED)


def _kept(place: Path, found: list[release.Row]) -> Iterator[release.Row | BadData]:
    for table in release.tables(place):
        for row in release.rows(table):
            if isinstance(row, release.Row):
                found.append(row)
            yield row
