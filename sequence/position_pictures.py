"""A picture of studies of state tracking: accuracy along the row, within the training length and beyond it.

matmix study states --seeds 3
matmix picture positions --study runs/states --out positions.png
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean

from matmix.experiments.folder import Result
from matmix.experiments.report.collect import collect
from sequence.pictures import COLOURS, MARKS
from sequence.tasks.tokens import TIMES


def positions(study: Path, out: Path) -> str:
    """Accuracy along the row for each mixer, a panel a problem; the mean of the seeds, and their range.

    A point is a stretch of the row: quarters of the training length, and beyond it the second halves' quarters of the
    tests at 2, 4 and 8 times that.

    Args:
        study: folder of a study with the task `state_tracking`.
        out: picture to write; its ending picks the format (png, svg, pdf).
    """
    from matplotlib.figure import Figure

    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for run in collect(study).runs:
        if run.result is not None and run.score is not None and curve(run.result):
            found[str(run.result.config["options"].get("problem", run.setting))][run.mixer].append(run.result)
    if not found:
        raise ValueError(f"{study} has no finished run with scores by position, as state_tracking has them")
    names = sorted({mixer for arms in found.values() for mixer in arms})
    figure = Figure(figsize=(3.6 * len(found) + 1.8, 3.4), dpi=110, layout="constrained")
    for axis, (problem, arms) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for mixer, results in sorted(arms.items()):
            index = names.index(mixer)
            curves = [curve(result) for result in results]
            places = sorted(set.intersection(*(set(one) for one in curves)))
            scores = [[one[place] for one in curves] for place in places]
            look = {"color": COLOURS[index % len(COLOURS)], "label": mixer}
            axis.plot(places, [mean(s) for s in scores], MARKS[index % len(MARKS)] + "-", markersize=4, **look)
            axis.fill_between(places, [*map(min, scores)], [*map(max, scores)], color=look["color"], alpha=0.15)
        axis.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(problem, fontsize=9)
        axis.set_xlabel("place in the row over the training length")
        axis.grid(alpha=0.25, linewidth=0.6)
    figure.axes[0].set_ylabel("accuracy")
    labels = {
        label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside right upper", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return str(out)


def curve(result: Result) -> dict[float, float]:
    """The accuracy of each stretch of the row, by where it ends in training lengths; the shortest test that has it."""
    found = {}
    for split, times in {"test": 1, **TIMES}.items():
        scores = result.test if split == "test" else result.tests.get(split, {})
        for part in (1, 2, 3, 4) if times == 1 else (3, 4):
            if f"accuracy.{part}/4" in scores:
                found[times * part / 4] = scores[f"accuracy.{part}/4"]
    return found
