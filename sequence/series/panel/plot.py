"""Forecasts behind their history, one panel a series."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from sequence.series.panel.frames import Panel

MOST = 12
"""Panels of one picture."""


def draw(
    panel: Panel, forecast: pd.DataFrame, model: str, steps: int, names: list[str] | None, out: Path | None
) -> Any:
    """A matplotlib figure: the last `steps` of each history in black, forecasts in blue, quantiles as shades.

    Raises:
        ValueError: for a name that no series has.
    """
    from matplotlib.figure import Figure

    known = {name: (one, place) for one in panel.series for place, name in enumerate(one.names)}
    chosen = list(known)[:MOST] if names is None else names
    absent = [name for name in chosen if name not in known]
    if absent:
        raise ValueError(f"there is no series {', '.join(map(repr, absent))}; there are {', '.join(known)}")
    columns = min(3, math.ceil(math.sqrt(len(chosen))))
    height = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 0.6 + 2.4 * height), layout="constrained")
    levels = sorted(
        (float(name.rpartition("-q")[2]), name) for name in forecast.columns if name.startswith(f"{model}-q")
    )
    for axes, name in zip(figure.subplots(height, columns, squeeze=False).flat, chosen, strict=False):
        one, place = known[name]
        axes.plot(one.dates[-steps:], one.values[-steps:, place], color="black", linewidth=1, label="history")
        part = forecast[forecast["unique_id"] == name]
        for (low, below), (high, above) in zip(levels, levels[::-1], strict=True):
            if low < high:
                axes.fill_between(
                    part["ds"], part[below], part[above], color="#0072B2", alpha=0.2, linewidth=0,
                    label=f"{low:g} to {high:g}",
                )  # fmt: skip
        axes.plot(part["ds"], part[model], color="#0072B2", linewidth=1.5, label=model)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.tick_params(axis="x", rotation=20)
    for axes in figure.axes[len(chosen) :]:
        axes.set_axis_off()
    figure.axes[0].legend(fontsize=7, frameon=False)
    if len(known) > len(chosen) and names is None:
        figure.suptitle(f"{len(chosen)} of {len(known)} series", fontsize=9)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    return figure
