"""What ``explain`` found: heads with their distances from classes of matrices, as text, data and picture."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from matmix.mixers.base import Grid
from matmix.projection import project
from matmix.surgery.distances import Distance, Measured
from matmix.surgery.table import table

TITLES = ("site", "heads", "is", "for", "error", "varies", "free numbers", "of", "FLOPs", "was", "set aside")


@dataclass(frozen=True)
class Head:
    """One head of one site."""

    site: str
    """Its name in the model; of a module that is called several times ``name#2``, ..."""
    head: int
    of: int
    """Heads of the site, looked at or not."""
    tokens: int
    """Behind the prefix."""
    grid: Grid | None
    prefix: int
    samples: int
    """Matrices that were looked at; 1 if all were one."""
    inputs: int
    causal: bool
    """Whether no entry above the diagonal differs from 0."""
    free: int
    """Free numbers of any matrix of this size (any causal one where this is causal)."""
    flops: int
    """Floating-point operations of the old matrix and its product, for one sequence and head."""
    aside: float
    """Share of the squared entries in the rows and columns of prefix tokens."""
    mean: Tensor = dataclasses.field(repr=False)
    """The mean matrix (L, L) of the tokens behind the prefix."""
    measured: Measured = dataclasses.field(repr=False)

    @property
    def found(self) -> Distance | None:
        """The smallest class within the tolerance; None if there is none."""
        return self.measured.found

    @property
    def fixed(self) -> bool:
        """Whether one matrix serves all data."""
        return self.measured.fixed

    @property
    def error(self) -> float | None:
        """The error of ``found``."""
        return self.measured.error

    @property
    def variation(self) -> float:
        """How far the matrices are from their mean, relative to their size."""
        return self.measured.variation

    @property
    def name(self) -> str:
        """Site and head."""
        return f"{self.site}, head {self.head}"

    def member(self) -> Tensor:
        """The member (L, L) nearest to the mean matrix, of the class found or, if there is none, of the nearest one."""
        best = self.found or self.measured.nearest
        if best is None:
            return self.mean
        return project(self.mean[None, None], best.spec, grid=self.grid).matrix.to_dense()[0, 0]

    def __str__(self) -> str:
        nearest = self.measured.nearest
        if self.found is not None:
            assert self.error is not None
            return f"{self.name}: {self.found.spec} to {percent(self.error)}, {_for(self)}"
        best = "" if nearest is None else f"; nearest is {nearest.spec}, to {percent(nearest.error)}"
        return f"{self.name}: no class, {_for(self)}{best}"


@dataclass(frozen=True)
class Explanation:
    """The heads of a model; printed, a table in which neighbouring heads of one kind share a line."""

    heads: tuple[Head, ...]
    tolerance: float
    skipped: Mapping[str, str]
    """Sites that were not looked at, and why."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every head and class as plain data, for a table of your own."""
        return [
            {
                "site": head.site,
                "head": head.head,
                "class": d.spec,
                "parameters": d.parameters,
                "flops": d.flops,
                "error": d.error,
                "fixed_error": d.fixed_error,
                "mean_error": d.mean_error,
                "exact": d.exact,
                "explains": d.explains,
                "found": d is head.found,
            }
            for head in self.heads
            for d in head.measured.distances
        ]

    def table(self) -> list[dict[str, Any]]:
        """Every head with what it is, as plain data."""
        return [
            {
                "site": head.site,
                "head": head.head,
                "class": None if head.found is None else head.found.spec,
                "fixed": head.fixed,
                "error": head.error,
                "nearest": None if head.measured.nearest is None else head.measured.nearest.spec,
                "nearest_error": None if head.measured.nearest is None else head.measured.nearest.error,
                "variation": head.variation,
                "parameters": None if head.found is None else head.found.parameters,
                "free": head.free,
                "flops": None if head.found is None else head.found.flops,
                "old_flops": head.flops,
                "aside": head.aside,
                "tokens": head.tokens,
                "grid": None if head.grid is None else list(head.grid),
                "prefix": head.prefix,
                "samples": head.samples,
                "inputs": head.inputs,
                "causal": head.causal,
            }
            for head in self.heads
        ]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """``table()``, ``rows`` and what was skipped as JSON; written to a file if one is named."""
        text = json.dumps(
            {
                "tolerance": self.tolerance,
                "heads": self.table(),
                "distances": self.rows,
                "skipped": dict(self.skipped),
            },
            indent=1,
        )
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def picture(self, path: str | os.PathLike[str], *, max_rows: int = 24, title: str = "") -> Path:
        """Draw each head: its mean matrix, the nearest member of the class found, and its errors by class.

        Args:
            path: where to write; the extension picks the format.
            max_rows: heads that are drawn, evenly chosen from all.
            title: over the picture.

        Raises:
            ValueError: for a path whose extension is no picture format, or ``max_rows`` below 1.
            FileNotFoundError: if the folder does not exist.
        """
        from matmix.inspect.class_pictures import Cell, Row, draw_classes

        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        count = min(max_rows, len(self.heads))
        chosen = [self.heads[at * len(self.heads) // count] for at in range(count)]
        rows = [
            Row(
                site=head.site,
                head=head.head,
                verdict=_verdict(head),
                fixed=head.fixed,
                explained=head.found is not None,
                variation=head.variation,
                mean=head.mean,
                member=head.member(),
                grid=head.grid,
                cells=tuple(
                    Cell(d.spec, d.parameters, d.error, d.fixed_error, d is head.found)
                    for d in head.measured.distances
                    if d.explains
                ),
            )
            for head in chosen
        ]
        notes = [f"{count} of {len(self.heads)} heads"] if count < len(self.heads) else []
        if any(head.prefix for head in chosen):
            notes.append("rows and columns of prefix tokens are left out")
        return draw_classes(rows, path, tolerance=self.tolerance, title=title, notes=notes)

    def __str__(self) -> str:
        lines, cells = [], []
        for _, group in groupby(self.heads, key=_alike):
            cells.append(_cells(list(group)))
        if cells:
            lines.append(table(TITLES, cells, frozenset(TITLES[4:])))
        lines.append(
            f"error: the largest of the line; a class fits within {100 * self.tolerance:g} %, and one in brackets, "
            "the nearest, does not"
        )
        lines += [f"skipped {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        sites = len({head.site for head in self.heads})
        return f"Explanation({len(self.heads)} heads of {sites} site{'s' * (sites != 1)}, tolerance {self.tolerance})"


def percent(value: float) -> str:
    """A share of one, in per cent with two digits that count."""
    hundred = 100 * value
    return f"{hundred:.0f} %" if hundred >= 10 else f"{hundred:.1f} %" if hundred >= 0.05 else "0 %"


def _for(head: Head) -> str:
    return "one for all data" if head.fixed else "another for each input"


def _verdict(head: Head) -> str:
    if head.found is not None:
        assert head.error is not None
        return f"{head.found.spec}\nto {percent(head.error)}, {_for(head)}"
    nearest = head.measured.nearest
    return f"no class, {_for(head)}" + ("" if nearest is None else f"\n({nearest.spec}: {percent(nearest.error)})")


def _alike(head: Head) -> tuple[Any, ...]:
    return (head.site, None if head.found is None else head.found.spec, head.fixed)


def _cells(heads: list[Head]) -> tuple[str, ...]:
    """One line of the table: heads of one site with one verdict."""
    first = heads[0]
    numbers = [head.head for head in heads]
    which = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    which += f" ({len(numbers)} of {first.of})" if len(numbers) > 1 and numbers[-1] - numbers[0] >= len(numbers) else ""
    found = first.found
    # The worst of the line: its error, and where no class fits that of the nearest.
    shown = [(head.found or head.measured.nearest, head.error) for head in heads]
    errors = [(d.error if error is None else error, d) for d, error in shown if d is not None]
    error, best = max(errors, key=lambda pair: pair[0]) if errors else (None, None)
    return (
        first.site,
        which,
        "no class" if best is None else best.spec if found is not None else f"({best.spec})",
        _for(first),
        "" if error is None else percent(error),
        percent(max(head.variation for head in heads)),
        "" if best is None else f"{best.parameters:,}",
        f"{first.free:,}",
        "" if best is None else f"{best.flops:,}",
        f"{first.flops:,}",
        percent(max(head.aside for head in heads)) if first.prefix else "",
    )
