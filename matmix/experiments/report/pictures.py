"""The pictures of a report: score against cost, learning curves, learned matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from matmix.experiments.report.collect import Run, Setting
from matmix.experiments.report.tables import ordered, trivial_score
from matmix.experiments.text import shown

DPI = 110
TOKENS = 16
# Okabe and Ito's colours without yellow: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# How hard adjustText pushes labels apart: gently first, so that they stay near their points.
PUSHES: tuple[dict[str, Any], ...] = (
    {"expand": (1.1, 1.3), "force_pull": (2e-3, 2e-3), "force_explode": (0.3, 1.2), "force_text": (0.4, 0.8),
     "max_move": (20, 20)},
    {"expand": (1.1, 1.3), "force_pull": (1e-3, 1e-3), "force_explode": (0.1, 0.5), "force_text": (0.2, 0.8),
     "max_move": None, "explode_radius": 60},
    {"expand": (1.2, 1.5), "force_pull": (5e-4, 5e-4), "force_explode": (0.5, 1.5), "force_text": (0.5, 1.0),
     "max_move": (30, 30), "explode_radius": 90},
)  # fmt: skip


def cost_picture(setting: Setting, path: Path) -> bool:
    """Test score against arithmetic and against time; False (and no file) where nothing is finished."""
    sample = setting.sample
    table = ordered(setting)
    if sample is None or not table:
        return False
    points: dict[str, list[tuple[str, float, float, float]]] = {"arithmetic": [], "time": []}
    for mixer, summary in table:
        results = [run.result for run in setting.of(mixer) if run.score is not None and run.result is not None]
        macs = [r.macs + (r.fft_flops or 0) / 2 for r in results if r.macs is not None]
        times = [r.step_seconds * 1e3 for r in results if r.step_seconds is not None]
        for kind, values in (("arithmetic", macs), ("time", times)):
            if values and min(values) > 0:
                points[kind].append((mixer, float(np.mean(values)), summary.mean, summary.spread or 0.0))
    kinds = [kind for kind in points if points[kind]]
    if not kinds:
        return False
    figure = Figure(figsize=(5.6 * len(kinds), 4.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    names = {"arithmetic": "MACs for an example (two FFT operations count as one)", "time": "ms for a training step"}
    trivial, dashed = trivial_score(sample), ""
    for axis, kind in zip(axes, kinds, strict=True):
        labels, x, y, spread = (list(column) for column in zip(*points[kind], strict=True))
        axis.errorbar(x, y, yerr=spread, fmt="none", ecolor="0.78", elinewidth=1.2)
        axis.scatter(x, y, c=[_colour(index) for index in range(len(x))], s=22, zorder=3)
        axis.set_xscale("log")
        axis.set_xlim(min(x) / 1.6, max(x) * 1.6)
        axis.set_xlabel(names[kind])
        axis.grid(alpha=0.25, linewidth=0.6)
        _plain_ticks(axis)
        low = min(a - b for a, b in zip(y, spread, strict=True))
        high = max(a + b for a, b in zip(y, spread, strict=True))
        margin = 0.14 * (high - low) or 0.1 * abs(high) or 0.1
        axis.set_ylim(low - margin, high + margin)
        if trivial is not None and low - margin < trivial[1] < high + margin:
            axis.axhline(trivial[1], color="0.5", linewidth=0.8, linestyle="--")
            dashed = f"; dashed: {trivial[0]}"
    axes[0].set_ylabel(f"test {sample.metric}" + ("" if sample.higher_is_better else " (lower is better)"))
    figure.suptitle(
        f"{shown(setting.name)}: score against cost, mean and standard deviation over seeds{dashed}", fontsize=10
    )
    figure.draw_without_rendering()  # settles the layout: labels are placed in its pixels
    for axis, kind in zip(axes, kinds, strict=True):
        labels, x, y, spread = (list(column) for column in zip(*points[kind], strict=True))
        place_labels(axis, labels, x, y)
    figure.set_layout_engine("none")
    figure.savefig(path)
    return True


def place_labels(axis: Any, labels: Sequence[str], x: Sequence[float], y: Sequence[float]) -> list[Any]:
    """Write a label beside each point so that no label covers another one or a point; far ones get a line.

    adjustText pushes them apart, harder from try to try until nothing overlaps; of tries that all leave some overlap
    the best one stands. The layout must be final.
    """
    renderer, frame = axis.figure.canvas.get_renderer(), axis.get_window_extent().padded(-2)
    points = axis.transData.transform(np.column_stack([x, y]))
    texts = [axis.text(0, 0, shown(label), fontsize=7.5, color=_colour(i), zorder=5) for i, label in enumerate(labels)]
    best, least = [], math.inf
    for attempt, force in enumerate(PUSHES):
        for text, place in zip(texts, zip(x, y, strict=True), strict=True):
            text.set_position(place)
        with _quiet_and_repeatable(attempt):
            adjust_text(texts, x=x, y=y, ax=axis, iter_lim=300, **force)
        boxes = []
        for text in texts:  # back into the frame, where they were pushed over it
            box = text.get_window_extent(renderer)
            low, high = np.maximum(frame.min - box.min, 0), np.minimum(frame.max - box.max, 0)
            moved = axis.transData.transform(text.get_position()) + low + high
            text.set_position(axis.transData.inverted().transform(moved))
            boxes.append(text.get_window_extent(renderer))
        bad = sum(one.overlaps(other) for one, other in combinations(boxes, 2))
        bad += sum(box.contains(*point) for box in boxes for point in points)
        if bad < least:
            best, least = [(text.get_position(), box) for text, box in zip(texts, boxes, strict=True)], bad
        if not bad:
            break
    for index, (text, (position, box)) in enumerate(zip(texts, best, strict=True)):
        text.set_position(position)
        end = np.clip(points[index], box.min, box.max)
        if np.hypot(*(end - points[index])) > 9:
            ends = axis.transData.inverted().transform([points[index], end])
            axis.plot(*ends.T, color=_colour(index), linewidth=0.6, zorder=1, scalex=False, scaley=False)
    return texts


@contextmanager
def _quiet_and_repeatable(seed: int) -> Iterator[None]:
    """adjustText draws from numpy's global generator, and prints."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        np.random.set_state(state)


def curves_picture(setting: Setting, path: Path) -> bool:
    """Validation metric over the steps, a panel a mixer, all other mixers in grey behind it."""
    sample = setting.sample
    drawn = {mixer: curves for mixer in setting.mixers if (curves := _curves(setting.of(mixer), _metric(setting)))}
    if not drawn:
        return False
    order = [mixer for mixer, _ in ordered(setting) if mixer in drawn]
    order += [mixer for mixer in drawn if mixer not in order]
    columns = min(5, len(order))
    rows = math.ceil(len(order) / columns)
    figure = Figure(figsize=(max(2.3 * columns, 4.6), 1.9 * rows + 0.7), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(order) :]:
        axis.set_visible(False)
    for mixer, axis in zip(order, axes.flat, strict=False):
        for other, curves in drawn.items():
            for steps, values in curves if other != mixer else ():
                axis.plot(steps, values, color="0.87", linewidth=0.7, zorder=1)
        for index, (steps, values) in enumerate(drawn[mixer]):
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(steps, values, color=colour, linewidth=1.3, marker="." if len(steps) < 3 else None, zorder=2)
        axis.set_title(shown(mixer), fontsize=8.5)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, linewidth=0.5)
    figure.suptitle(
        f"{shown(setting.name)}: validation {_metric(setting)}, a line a seed; grey: the other mixers", fontsize=10
    )
    figure.supxlabel("step", fontsize=9)
    better = "" if sample is None or sample.higher_is_better else " (lower is better)"
    figure.supylabel(f"validation {_metric(setting)}{better}", fontsize=9)
    figure.savefig(path)
    return True


def matrices_picture(setting: Setting, path: Path) -> tuple[bool, list[str]]:
    """A learned matrix of each mixer: last layer, first head, on the task's example; and why some are missing.

    Of a pyramid, the last layer that still has `TOKENS` tokens: the 2 x 2 tokens at its end show nothing.
    """
    from matmix.experiments.folder import load_model
    from matmix.experiments.task import inputs_of
    from matmix.inspect.pictures import Panel, dense, draw, kind, short
    from matmix.inspect.recording import grids, matrices

    panels, problems = [], []
    for mixer in [name for name, _ in ordered(setting)]:
        run = min((run for run in setting.of(mixer) if run.score is not None), key=lambda run: run.seed)
        try:
            task, model = load_model(run.folder)
            args, named = inputs_of(task.example())
            found = list(matrices(model, *args, **named).items())
            name, matrix = next((one for one in reversed(found) if one[1].shape[2] >= TOKENS), found[-1])
            entries = dense(matrix)[0]
            grid = grids(model, {name: matrix})[name]
        except Exception as error:  # a mixer whose code is gone, weights that were removed: the rest still stands
            problems.append(f"{mixer}: no matrix ({type(error).__name__}: {error})")
            continue
        heads = matrix.shape[1]
        which = f", head 0 of {heads}" if heads > 1 else ""
        panels.append(Panel(entries, f"{shown(mixer)}\n{short(kind(matrix), 36 - len(which))}{which}", grid))
    if not panels:
        return False, problems
    rows = [panels[start : start + 5] for start in range(0, len(panels), 5)]
    heading = f"{shown(setting.name)}: learned matrices of a late layer, for one example (best weights, first seed)"
    draw(rows, heading, relative=True).savefig(path, dpi=DPI)
    return True, problems


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _metric(setting: Setting) -> str:
    sample = setting.sample
    if sample is not None:
        return sample.metric
    names = [key for run in setting.runs for line in run.curve if line["split"] == "val" for key in line]
    return next((name for name in names if name not in ("step", "split", "loss")), "loss")


def _curves(runs: Sequence[Run], metric: str) -> list[tuple[list[int], list[float]]]:
    found = []
    for run in runs:
        lines = [line for line in run.curve if line["split"] == "val" and math.isfinite(line.get(metric, math.nan))]
        if lines:
            found.append(([line["step"] for line in lines], [line[metric] for line in lines]))
    return found


def _plain_ticks(axis: Any) -> None:
    """A log axis over less than a decade or so needs ticks between the powers of ten, and readable numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    subs: tuple[float, ...] = (1, 2, 5) if high / low < 100 else (1,)
    if high / low < 5:
        subs = (1, 1.5, 2, 3, 4, 5, 7)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float, position: int = 0) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
