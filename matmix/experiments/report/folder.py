"""The folder `report/` of a study: its files are exchanged one by one, and only those that a report before has made.

Each page is one file, so a reader sees the old one or the new. The marker of the folder lists its files with their
checksums: what is not in that list is somebody else's, and stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from matmix.checksums import Sums, sums
from matmix.folders import check_ours, claim, mark, names_in, remove, sweep, temporary

NAME = KIND = "report"
_LOCK = ".lock"
_PAGE = b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"'


@contextmanager
def exchanged(study: Path) -> Iterator[Path]:
    """An empty folder for a new report, whose files take the place of those in `report/` at the end.

    Raises:
        NotOurs: before anything is made, for a `report/` that is somebody else's.
    """
    out = study / NAME
    check_ours(out, KIND, _is_report, NAME)
    sweep(study)
    fresh = temporary(out)
    fresh.mkdir()
    try:
        yield fresh
        claim(out, KIND, _is_report, NAME)
        with FileLock(out / _LOCK):  # two at once: one whole report after the other
            _exchange(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # this process alone has made it, and all that is in it


def files_of(report: Path) -> Sums:
    """Names and checksums of the files of a report; of one without a list, the names that reports have."""
    found = check_ours(report, KIND, _is_report, NAME)
    if found is not None and "files" in found:
        return dict(found["files"])
    return {path.name: {} for path in report.iterdir() if _may_be_of_report(path)}


def _exchange(fresh: Path, out: Path) -> None:
    old, new = files_of(out), sums(fresh, sorted(path.name for path in fresh.iterdir()))
    taken = [name for name in new if name not in old and (out / name).exists()]
    if taken:
        raise ValueError(f"{out / taken[0]} is not of a report, and this one has a file of that name: move it away")
    mark(out, KIND, files={**old, **new})  # whoever is killed below leaves no file that nobody knows
    for name in new:
        os.replace(fresh / name, out / name)
    mark(out, KIND, files=new)
    remove(out, "|".join(re.escape(name) for name in old if name not in new) or "(?!)")


def _is_report(folder: Path) -> bool:
    """Whether a folder without a marker holds a report, and nothing else: it was made before there were any."""
    files = [folder / name for name in names_in(folder) - {_LOCK}]
    if not {"index.html", "report.md", "runs.csv"} <= {path.name for path in files}:
        return False
    with open(folder / "index.html", "rb") as page:
        return all(map(_may_be_of_report, files)) and page.read(len(_PAGE)) == _PAGE


def _may_be_of_report(path: Path) -> bool:
    return path.is_file() and (path.name in ("index.html", "report.md") or path.suffix in (".png", ".csv"))
