"""The command that looks whether finished files are what they were: `matmix verify`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matmix.experiments.cli_words import Parser

LISTED = 50
"""So many folders are all listed; of more, those with which something is wrong."""


def verify(words: Sequence[str]) -> int:
    """Say which files of runs, studies, saved surgeries and forecasters in a folder are damaged or missing, and the
    command that repairs.

    The exit status is 1 where one is. Runs of older versions kept no checksums: they are "unchecked".
    """
    parser = Parser(prog="matmix verify", description=verify.__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="of a run, a study, a surgery or a forecaster, or with some below it")
    root: Path = parser.parse_args(words).folder
    from rich.console import Console
    from rich.progress import track

    from matmix.experiments import verify as look

    found = look.folders(root)
    studies = [folder for folder in found if (folder / "study.json").exists()]
    bar = track(found, "verify", console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty())
    counts: Counter[str] = Counter()
    for folder in bar:
        study = next((one for one in reversed(studies) if one in folder.parents), None)
        for one in look.verify(folder, study):
            counts[one.status] += 1
            if one.status in look.WRONG or len(found) <= LISTED:
                print(f"{one.status:9} {one.path}{f'  {one.text}' if one.text else ''}", flush=True)
            if one.repair:
                print(f"{'':9} repair: {one.repair}", flush=True)
    print(", ".join(f"{count:,} {status}" for status, count in counts.most_common()))
    return 1 if any(counts[status] for status in look.WRONG) else 0
