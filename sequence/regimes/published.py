"""Accuracies on the Long Range Arena as published, each under the regime that it was got in.

Numbers of one regime say nothing about another: a Transformer has 36 % on ListOps in the first and 48 % in the last,
by its size and training alone. So a report takes `published(regime)` and no other row; rows whose regime is not one of
ours are in `ELSEWHERE`, with the reason, and stand beside no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")


class Published(NamedTuple):
    """Test accuracies in % by task. A task that the model failed on, at chance, has None; one that was not tried, no
    entry. `source`: the table that it stands in."""

    model: str
    accuracy: Mapping[str, float | None]
    source: str


def _row(model: str, source: str, *scores: float | str) -> Published:
    """In the order of `TASKS`: a number, "x" where it failed, "-" where it was not tried."""
    given = {task: score for task, score in zip(TASKS, scores, strict=True) if score != "-"}
    return Published(model, {task: None if score == "x" else float(score) for task, score in given.items()}, source)


_LRA = "readme of google-research/long-range-arena"
_PONET = "table of 2110.02442 (PoNet)"
_MEGA = "table of 2209.10655 (Mega)"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "lra2020": (
        # ListOps of 2020 lacked the brackets and counted lengths otherwise (issues 6 and 20 there): not comparable.
        _row("Transformer", _LRA, 36.37, 64.27, 57.46, 42.44, 71.40, "x"),
        _row("FNet", _PONET, 35.33, 65.11, 59.61, 38.67, 77.80, "x"),
    ),
    "nystrom": (
        _row("Transformer", _PONET, 37.10, 65.02, 79.35, 38.20, 74.16, "-"),
        _row("Nystromformer", _PONET, 37.15, 65.52, 79.56, 41.58, 70.94, "-"),
        _row("Performer", _PONET, 18.80, 63.81, 78.62, 37.07, 69.87, "-"),
        _row("Reformer", _PONET, 19.05, 64.88, 78.64, 43.29, 69.36, "-"),
        _row("Linformer", _PONET, 37.25, 55.91, 79.37, 37.84, 67.60, "-"),
        _row("FNet", _PONET, 37.40, 62.52, 76.94, 35.55, "x", "-"),
        _row("PoNet", _PONET, 37.80, 69.82, 80.35, 46.88, 70.39, "-"),
    ),
    "s4": (
        _row("S4 (second version, LegS)", _MEGA, 59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
        _row("S4 (as its repository reports)", "readme of state-spaces/s4", 59.5, 86.5, 91.0, 88.5, 94.0, 96.0),
        _row("S4D-LegS", "second hand", 60.47, 86.18, 89.46, 88.19, 93.06, 91.95),
        _row("S4D-Inv", "second hand", 60.18, 87.34, 91.09, 87.83, 93.78, 92.80),
        _row("S4D-Lin", "second hand", 60.52, 86.97, 90.96, 87.93, 93.96, "x"),
    ),
    "s5": (_row("S5", "second hand", 62.15, 89.31, 91.40, 88.00, 95.33, 98.58),),
    "mega": (
        _row("Mega", _MEGA, 63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
        _row("Mega-chunk", _MEGA, 58.76, 90.19, 90.97, 85.80, 94.41, 93.81),
    ),
}

ELSEWHERE: tuple[tuple[Published, str], ...] = (
    (_row("DSS", "second hand", 57.6, 76.6, 87.6, 85.8, 84.1, 85.0), "sizes of S4's first version"),
    (
        _row("S4 (first version)", _MEGA, 58.35, 76.02, 87.09, 87.26, 86.05, 88.10),
        "configurations of its tags v1 to v3",
    ),
    (_row("LRU", "table of 2303.06349", 60.2, 89.4, 89.9, 89.0, 95.1, 94.2), "its own; its images are in colour"),
    (_row("Luna-256", _MEGA, 37.98, 65.78, 79.56, 47.86, 78.55, "x"), "small Transformers, in Luna's own code"),
    (
        # Of the pretrained ones averages alone are known (2310.02980): rotary Transformer 86.2, S4 86.1.
        _row("rotary Transformer", "fluderm/MLRA, table 1", 47.90, 79.08, 82.31, 75.04, 76.64, 84.72),
        "spt without its first phase, in larger shapes that are not stated",
    ),
    (_row("Transformer", _MEGA, 37.11, 65.21, 79.14, 42.94, 71.83, "x"), "Mega's repetition of it; sizes not stated"),
)


def published(regime: str, task: str) -> dict[str, float | None]:
    """Accuracy in % by model of those that were trained on the task in the regime; None: at chance. Empty for a regime
    in which nobody has published anything."""
    return {row.model: row.accuracy[task] for row in PUBLISHED.get(regime, ()) if task in row.accuracy}
