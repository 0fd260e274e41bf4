"""What `matmix data series --check FOLDER` says: which data sets are there, whole, and where to get the others."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

from matmix.experiments.data import Finding
from sequence.data.check import words
from sequence.data.faults import BadData
from sequence.series.data import m4
from sequence.series.data.sets import SETS, located
from sequence.series.data.sets import load as load_table

PARTS: dict[str, str] = {
    "forecast": "sequence.series.data.check:forecast",
    "m4": "sequence.series.data.check:competition",
    "classes": "sequence.series.data.ts_files:found",
    "anomalies": "sequence.series.data.anomalies:found",
}
"""By task, the function from a folder to what is said about it: `(Path) -> Iterable[Finding]`."""


def series(folder: Path) -> Iterator[Finding]:
    """Time series: ETT, Exchange, Weather, ECL, Traffic, ILI, M4, and what other tasks read."""
    for part, place in PARTS.items():
        module, _, name = place.partition(":")
        try:
            yield from getattr(import_module(module), name)(folder)
        except BadData as error:
            yield Finding(part, "damaged", words(error))


def forecast(folder: Path) -> Iterator[Finding]:
    """Each data set of forecasting and imputation, every value of it."""
    for found in SETS.values():
        path = located(found, folder)
        if path is None:
            yield Finding("forecast", "missing", f"{found.name}: get {found.file}.csv from {found.source}")
            continue
        try:
            table = load_table(found.name, str(folder))
        except BadData as error:
            yield Finding("forecast", "damaged", words(error))
            continue
        rows, columns = table.values.shape
        yield Finding("forecast", "found", f"{found.name}: {path}, {rows:,} rows of {columns} columns")
        for what, value in table.facts.items():
            yield Finding("forecast", "note", f"{found.name}: {what}: {value}")


def competition(folder: Path) -> Iterator[Finding]:
    """Both files of each frequency of M4."""
    for frequency in m4.FREQUENCIES:
        absent = [f"{frequency}-{part}.csv" for part in get_args(m4.Part) if not _m4(frequency, part, folder)]
        if absent:
            yield Finding("m4", "missing", f"{' and '.join(absent)}: get them from {m4.SOURCE}")
            continue
        try:
            data = m4.load(frequency, str(folder))
        except BadData as error:
            yield Finding("m4", "damaged", words(error))
            continue
        lengths = [len(known) for known in data.known]
        steps = f"{min(lengths):,} to {max(lengths):,} steps"
        yield Finding("m4", "found", f"{frequency}: {len(data.names):,} series of {steps}, {data.asked.shape[1]} asked")


def _m4(frequency: str, part: m4.Part, folder: Path) -> bool:
    return m4.located(frequency, part, folder) is not None
