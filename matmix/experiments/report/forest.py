"""Differences to the reference with their intervals and the margin, one line a verdict; ranks over data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from matmix.experiments.statistics import Ranks
from matmix.experiments.text import shown
from matmix.experiments.verdicts import Kind, Verdict, percent

DPI = 110
MOST_ROWS = 60
# Colour and marker say the same, for readers who do not tell the colours apart.
STYLE: dict[Kind, tuple[str, str]] = {
    "equivalent": ("#0072B2", "o"),
    "better": ("#009E73", "^"),
    "worse": ("#D55E00", "v"),
    "undecided": ("#6b7280", "D"),
}


def forest_rows(found: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts that are drawn: those with an interval; of very many, the ones with the largest change."""
    drawn = [one for one in found if math.isfinite(one.low) and one.base]
    largest = sorted(drawn, key=lambda one: -abs(one.share(one.mean)))[:MOST_ROWS]
    kept = {(one.setting, one.arm) for one in largest}
    return [one for one in drawn if (one.setting, one.arm) in kept]


def forest_picture(found: Sequence[Verdict], path: Path) -> bool:
    """Draw them; False (and no file) where there is no interval."""
    rows = forest_rows(found)
    if not rows:
        return False
    rows.sort(key=lambda one: (one.setting, one.arm), reverse=True)  # so that the first stands on top
    height = 0.21 * len(rows) + 1.5
    figure = Figure(figsize=(7.6, height), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    margin = 100 * rows[0].margin
    axis.axvspan(-margin, margin, color="#0072B2", alpha=0.12, linewidth=0)
    axis.axvline(0, color="0.4", linewidth=0.8)
    values = np.array([[100 * one.share(x) for x in (one.low, one.mean, one.high)] for one in rows])
    # One arm that is twice as bad must not press all others onto the axis.
    reach = max(8 * margin, float(np.quantile(np.abs(values[:, 1]), 0.8)) * 1.5)
    reach = max(1.2 * margin, min(reach, 1.05 * float(np.abs(values).max())))
    for at, (one, (low, mean, high)) in enumerate(zip(rows, values, strict=True)):
        colour, marker = STYLE[one.kind]
        axis.plot(np.clip([low, high], -reach, reach), [at, at], color=colour, linewidth=1.4)
        beyond = abs(mean) > reach
        axis.plot(np.clip(mean, -reach, reach), at, marker=marker, color=colour, markersize=5, clip_on=False)
        if beyond:
            right = mean > 0
            axis.annotate(
                f"{mean:+.3g} %", (np.clip(mean, -reach, reach), at), xytext=(-8 if right else 8, 0),
                textcoords="offset points", ha="right" if right else "left", va="center", fontsize=7, color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_yticks(range(len(rows)), [shown(f"{one.place}: {one.arm}") for one in rows], fontsize=7.5)
    axis.set_xlabel(f"change against {shown(rows[0].reference)}, % of its score, 90 % interval", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    kinds = [kind for kind in STYLE if any(one.kind == kind for one in rows)]
    keys = [Line2D([], [], color=STYLE[kind][0], marker=STYLE[kind][1], markersize=5, label=kind) for kind in kinds]
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), fontsize=8, frameon=False)
    axis.set_title(f"shaded: the margin of {percent(rows[0].margin)}", fontsize=8.5, loc="left")
    figure.savefig(path)
    return True


def critical_difference(ranks: Ranks, path: Path) -> bool:
    """Mean ranks on a line, a bar over arms that the test does not tell apart; False (and no file) without a test."""
    if ranks.p is None or len(ranks.average) < 3:
        return False
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    names = list(ranks.average)
    matrix = pd.DataFrame(1.0, names, names)
    for (first, second), p in ranks.pairs.items():
        matrix.loc[first, second] = matrix.loc[second, first] = p if ranks.p < 0.05 else 1.0
    figure = Figure(figsize=(7.6, 0.22 * len(names) + 1.3), dpi=DPI, layout="constrained")
    critical_difference_diagram(ranks.average, matrix, ax=figure.subplots(), label_props={"fontsize": 8})
    figure.savefig(path)
    return True
