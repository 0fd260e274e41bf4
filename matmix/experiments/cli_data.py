"""The command that looks after data sets: `matmix data`. What there is to look for is said by installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matmix.experiments.cli_words import Parser
from matmix.experiments.data import find_check, list_checks


def data(words: Sequence[str]) -> int:
    """Say what of some data sets is in a folder, what is missing and where to get it, and what is damaged."""
    parser = Parser(prog="matmix data", description=data.__doc__, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help=f"which data sets: {', '.join(list_checks()) or 'none is installed'}")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="where they are, or part of them")
    given = parser.parse_args(words)
    if given.name is None:
        for name in list_checks():
            print(f"{name}  {_first_line(find_check(name))}")
        return 0
    check = find_check(given.name)
    if given.check is None:
        raise ValueError(f"say where to look: matmix data {given.name} --check FOLDER")
    folder = given.check.expanduser()
    if not folder.is_dir():
        raise ValueError(f"check: there is no folder {folder}")
    whole = True
    for finding in check(folder):
        whole &= finding.status not in ("missing", "damaged")
        print(f"{finding.part:12} {finding.status:8} {finding.text}", flush=True)
    return 0 if whole else 1


def _first_line(function: object) -> str:
    return (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
