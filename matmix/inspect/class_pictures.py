"""Heads against classes of matrices: each head's mean matrix, its nearest member, and a heat map of errors by class."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from matmix.inspect.pictures import DECADES, _check_path, _coarse, _lines, short
from matmix.mixers.base import Grid

HIGH, THUMB, WORDS, CELL, LEAST = 0.86, 0.78, 2.45, 0.27, 6.0  # inches: a row, its matrices, its text; a class, of all
FLOOR = 1e-3  # smaller errors have the colour of this one
FIXED, OWN, NONE = "#00695c", "#1565c0", "0.35"  # colours of what was found
SHADES = "magma"  # dark: near


@dataclass(frozen=True)
class Cell:
    """One class of one head."""

    spec: str
    parameters: int
    error: float  # with a member for each sample
    fixed_error: float  # with one for all
    found: bool


@dataclass(frozen=True)
class Row:
    """One head."""

    site: str
    head: int
    verdict: str
    fixed: bool
    explained: bool
    variation: float
    mean: Tensor  # (L_out, L_in)
    member: Tensor
    grid: Grid | None
    cells: tuple[Cell, ...]


def draw_classes(
    rows: Sequence[Row],
    path: str | os.PathLike[str],
    *,
    tolerance: float,
    title: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write the picture; raises as ``show`` does."""
    target = _check_path(path)
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    columns = _columns(rows)
    strip = max(CELL * len(columns), LEAST)
    head, foot = 1.25 + 0.3 * bool(title), 0.85
    width, height = 0.15 + WORDS + 2 * (HIGH + 0.05) + 0.15 + strip + 0.95, head + HIGH * len(rows) + foot
    figure = Figure(figsize=(width, height), dpi=130)

    def axes(left: float, top: float, wide: float, high: float) -> Any:
        """In inches from the left and from the top."""
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    first, second = 0.15 + WORDS, 0.15 + WORDS + HIGH + 0.05
    for at, row in enumerate(rows):
        top = head + HIGH * at
        _words(figure, row, 0.15 / width, 1 - (top + 0.06) / height, at == 0 or rows[at - 1].site != row.site, height)
        size = float(row.mean.abs().max()) or 1.0
        for left, entries in ((first, row.mean), (second, row.member)):
            _thumb(axes(left, top + 0.04, THUMB, THUMB), entries / size, row.grid)
    for left, text in ((first, "mean matrix"), (second, "nearest\nmember")):
        figure.text((left + THUMB / 2) / width, 1 - (head - 0.06) / height, text, ha="center", va="bottom", fontsize=8)

    heat = axes(second + HIGH + 0.15, head, strip, HIGH * len(rows))
    norm = LogNorm(FLOOR, 1.0, clip=True)
    image = _heat(heat, rows, columns, norm, tolerance)
    bar = figure.colorbar(image, cax=axes(width - 0.72, head, 0.13, min(HIGH * len(rows), 3.0)))
    bar.set_ticks([1e-3, 1e-2, 1e-1, 1], labels=["≤ 0.1 %", "1 %", "10 %", "100 %"])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.ax.axhline(tolerance, color="white", linewidth=1.2)
    bar.ax.set_title("error", fontsize=8)
    within = f"within {100 * tolerance:g} % with"
    legend = (
        f"● {within} one matrix for all data     ○ {within} another for each input     box: the smallest such class\n"
        "grey: not measured, since a smaller size fits, or the class has too many free numbers to explain anything"
    )
    figure.text((second + HIGH + 0.15) / width, 0.53 / height, legend, fontsize=8, color="0.25", va="center")
    note = "; ".join(("matrices: red positive, blue negative, each head by its own largest entry", *notes))
    figure.text(0.15 / width, 0.16 / height, note, fontsize=7.5, color="0.35", va="center")
    if title:
        figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=11, va="top")
    figure.savefig(target)
    return target


def _columns(rows: Sequence[Row]) -> list[str]:
    """Specs in the order of their classes, those with the fewest free numbers first, and of their sizes.

    Sizes between the regular ones were measured for one head only: they are shown where they are what was found.
    """
    least: dict[str, int] = {}
    sizes: dict[str, int] = {}
    times: dict[str, int] = {}
    found = set()
    for cell in (cell for row in rows for cell in row.cells):
        name = cell.spec.partition("(")[0]
        least[name] = min(least.get(name, cell.parameters), cell.parameters)
        sizes[cell.spec] = min(sizes.get(cell.spec, cell.parameters), cell.parameters)
        times[cell.spec] = times.get(cell.spec, 0) + 1
        found |= {cell.spec} if cell.found else set()
    shown = [spec for spec in sizes if spec in found or times[spec] > 1 or len(rows) == 1]
    return sorted(shown, key=lambda s: (least[s.partition("(")[0]], s.partition("(")[0], sizes[s]))


def _words(figure: Any, row: Row, x: float, y: float, first: bool, height: float) -> None:
    """Site, head and what was found, beside the matrices."""
    site = row.site if len(row.site) <= 34 else f"...{row.site[-31:]}"
    figure.text(x, y, site, fontsize=8.5, va="top", weight="bold", color="black" if first else "0.6")
    colour = NONE if not row.explained else FIXED if row.fixed else OWN
    lines = [f"head {row.head}, varies {100 * row.variation:.2g} %", *(short(t, 46) for t in row.verdict.split("\n"))]
    for at, line in enumerate(lines):
        style = {"color": "0.3"} if at == 0 else {"color": colour, "weight": "bold" if at == 1 else "normal"}
        figure.text(x, y - (0.17 + 0.16 * at) / height, line, fontsize=8, va="top", **style)


def _thumb(axis: Any, entries: Tensor, grid: Grid | None) -> None:
    from matplotlib.colors import SymLogNorm

    rows, columns = entries.shape
    norm = SymLogNorm(10.0**-DECADES, linscale=0.3, vmin=-1, vmax=1, base=10)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axis.imshow(_coarse(entries.float()).numpy(), cmap="RdBu_r", norm=norm, extent=extent, aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    _lines(axis, grid, rows, columns)


def _heat(axis: Any, rows: Sequence[Row], columns: list[str], norm: Any, tolerance: float) -> Any:
    """The errors, (heads, classes)."""
    import numpy as np
    from matplotlib.patches import Rectangle

    place = {spec: at for at, spec in enumerate(columns)}
    errors = np.full((len(rows), len(columns)), math.nan)
    for y, row in enumerate(rows):
        for cell in row.cells:
            if cell.spec in place:
                errors[y, place[cell.spec]] = max(cell.error, FLOOR)
    axis.set_facecolor("0.88")
    image = axis.imshow(errors, cmap=SHADES, norm=norm, aspect="auto", interpolation="none")
    for y, row in enumerate(rows):
        for cell in row.cells:
            x = place.get(cell.spec)
            if x is None:
                continue
            ink = "white" if cell.error < 0.15 else "black"
            if min(cell.error, cell.fixed_error) <= tolerance:
                full = cell.fixed_error <= tolerance
                axis.plot(x, y, "o", ms=5, mec=ink, mfc=ink if full else "none", mew=1.2)
            if cell.found:
                box = Rectangle(
                    (x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="#00e5ff", linewidth=2.2, zorder=5
                )
                axis.add_patch(box)
    for x in range(1, len(columns)):
        if columns[x].partition("(")[0] != columns[x - 1].partition("(")[0]:
            axis.axvline(x - 0.5, color="white", linewidth=2.5)
    for y in range(1, len(rows)):
        axis.axhline(y - 0.5, color="white", linewidth=3 if rows[y].site != rows[y - 1].site else 0.8)
    axis.set_yticks([])
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(columns)), labels=list(map(_label, columns)), rotation=60, ha="left", fontsize=7.5)
    axis.tick_params(length=2, pad=1)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _label(spec: str) -> str:
    """``low_rank(rank=4)`` as ``low_rank 4``."""
    name, _, options = spec.partition("(")
    return short(f"{name} {options.rstrip(')').partition('=')[2] or options.rstrip(')')}".strip(), 22)
