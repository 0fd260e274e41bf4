"""Pictures of studies with sequence tasks.

    matmix picture state --study runs/mqar-figure2 --out state.png
    matmix picture mad --study runs/mad --out mad.png

The functions stand in the entry-point group `matmix.pictures`; their arguments are the options of the command.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matmix.experiments.folder import Result
from matmix.experiments.report.collect import collect
from matmix.spec import parse_spec
from sequence.tasks.mad import BASELINES
from sequence.tasks.mad_grid import score

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = "osD^vP*X"


class Point(NamedTuple):
    """A mixer at one width: its state, and the scores of its seeds."""

    mixer: str
    state: int
    scores: tuple[float, ...]


def state(study: Path, out: Path, *, split: str = "test", metric: str = "") -> str:
    """Accuracy against the bytes of state that a mixer keeps for each token it generates, one line a mixer.

    A point is a mixer's spec at one width of the model, and a panel a task with its settings: vary the size of the
    state ("ssd(d_state=16)", "ssd(d_state=64)") or `dim`, and the points of one mixer are joined. Of several recipes,
    such as learning rates, the one counts that is best on validation. The state is the one behind a row of the test;
    keys and values of attention are more in a longer one. A mixer that keeps nothing is a dashed line. Those that
    cannot go on token by token have no state to show and are named below.

    Args:
        study: folder of a study.
        out: picture to write; its ending picks the format (png, svg, pdf).
        split: "test", or a further test of the task, such as test@4x.
        metric: what is on the y axis. Default: that of the task.
    """
    results = [run.result for run in collect(study).runs if run.result is not None and run.result.status == "finished"]
    found = panels(results, split, metric)
    if not any(points for points, _ in found.values()):
        raise ValueError(f"{study} has no finished run of a recurrent mixer with a score on {split!r}")
    _draw(found, out, metric, split, results)
    without = sorted({mixer for _, left in found.values() for mixer in left})
    return f"{out}" + (f"\nno state, as they are not recurrent: {', '.join(without)}" if without else "")


def mad(study: Path, out: Path) -> str:
    """MAD's score of each mixer: of the sweep the best run, averaged over the settings of each of the six tasks.

    Args:
        study: folder of a study of the task `mad`.
        out: picture to write; its ending picks the format (png, svg, pdf).
    """
    from matplotlib.figure import Figure

    runs: dict[str, list[tuple[dict[str, Any], float]]] = defaultdict(list)
    for run in collect(study).runs:
        if run.result is not None and run.score is not None and run.result.config["task"] == "mad":
            runs[run.mixer].append((run.result.config["options"], run.score))
    if not runs:
        raise ValueError(f"{study} has no finished run of the task mad")
    scores = {mixer: score(of_mixer) for mixer, of_mixer in runs.items()}
    order = sorted(scores, key=lambda mixer: -scores[mixer]["mean"])
    kinds = [kind for kind in (*BASELINES, "mean") if any(kind in found for found in scores.values())]
    cells = [[scores[mixer].get(kind, float("nan")) for kind in kinds] for mixer in order]
    figure = Figure(figsize=(2.2 + 1.2 * len(kinds), 1.2 + 0.4 * len(order)), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.imshow(cells, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=8)
    axis.set_yticks(range(len(order)), [f"{mixer} ({len(runs[mixer])} runs)" for mixer in order], fontsize=8)
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            axis.text(column, row, f"{value:.3f}", ha="center", va="center", color="w" if value > 0.6 else "k")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    lines = [" ".join(f"{kind} {value:.3f}" for kind, value in scores[mixer].items()) for mixer in order]
    return "\n".join([str(out), *(f"{mixer}: {line}" for mixer, line in zip(order, lines, strict=True))])


def panels(results: Iterable[Result], split: str, metric: str) -> dict[str, tuple[list[Point], list[str]]]:
    """By task and settings: the points, and the mixers without a state."""
    # panel -> (mixer, width) -> recipe -> results of the seeds
    grouped: dict[str, dict[tuple[str, int], dict[str, list[Result]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for result in results:
        options = {name: value for name, value in result.config["options"].items() if name != "dim"}
        panel = f"{result.config['task']} {json.dumps(options, sort_keys=True)}"
        arm = result.config["mixer"], result.config["options"].get("dim", 0)
        grouped[panel][arm][json.dumps(result.config["recipe"], sort_keys=True)].append(result)
    found = {}
    for panel, arms in grouped.items():
        points, without = [], []
        for (mixer, _), by_recipe in arms.items():
            sign = 1 if next(iter(by_recipe.values()))[0].higher_is_better else -1
            best = max(by_recipe.values(), key=lambda seeds: sign * mean(one.val[one.metric] for one in seeds))
            if best[0].state_bytes is None:
                without.append(mixer)
                continue
            scores = [_scores(one, split).get(metric or one.metric) for one in best]
            known = tuple(score for score in scores if score is not None)
            if known:
                points.append(Point(mixer, best[0].state_bytes, known))
        found[panel] = points, without
    return found


def _scores(result: Result, split: str) -> dict[str, float]:
    return result.test if split == "test" else result.tests.get(split, {})


def _draw(
    found: dict[str, tuple[list[Point], list[str]]], out: Path, metric: str, split: str, results: list[Result]
) -> None:
    from matplotlib.figure import Figure

    shown = {panel: points for panel, (points, _) in found.items() if points}
    names = sorted({family(point.mixer) for points in shown.values() for point in points})
    figure = Figure(figsize=(4.2 * len(shown) + 1.6, 4.0), dpi=110, layout="constrained")
    for axis, (panel, points) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for index, name in enumerate(names):
            line = sorted((p for p in points if family(p.mixer) == name), key=lambda p: p.state)
            if not line:
                continue
            if line[0].state == 0:  # has no place on the axis, and is what the others are to be compared with
                axis.axhline(mean(line[0].scores), label=f"{name}, no state", color="0.5", linestyle="--", linewidth=1)
                continue
            x, y = [p.state for p in line], [mean(p.scores) for p in line]
            reach = [[m - min(p.scores) for m, p in zip(y, line, strict=True)],
                     [max(p.scores) - m for m, p in zip(y, line, strict=True)]]  # fmt: skip
            look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKS[index % len(MARKS)]}
            axis.errorbar(x, y, yerr=reach, label=name, markersize=5, linewidth=1.2, capsize=2, **look)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("bytes of state behind a row of the test")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_title(_title(panel, list(shown)), fontsize=9)
    figure.axes[0].set_ylabel(f"{split} {metric or results[0].metric}")
    labels = {
        label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside right upper", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def family(mixer: str) -> str:
    """The names of the mixers in a spec, without their options: one line in the picture."""
    return ", ".join(call.name for call in parse_spec(mixer))


def _title(panel: str, others: list[str]) -> str:
    """The task, and the settings in which the panels differ."""
    name, _, text = panel.partition(" ")
    every = [json.loads(other.partition(" ")[2]) for other in others if other.startswith(f"{name} ")]
    differ = {
        key: value
        for key, value in json.loads(text).items()
        if any(one.get(key) != value for one in every) and not isinstance(value, list | dict)
    }
    return f"{name} {' '.join(f'{key}={value}' for key, value in differ.items())}".strip()
