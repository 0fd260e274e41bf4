"""MAD's benchmark: its 66 settings, its sweep of six trainings, and its score (arXiv 2403.17844, section 3 and B).

    settings()   label and options of every setting of `mad`: the published size of each kind, then one factor harder
    SWEEP        three learning rates by two weight decays, as `Study.recipes`
    score(...)   best of the sweep, mean over the settings of a kind, mean over the kinds

396 runs for one mixer and one seed, 20,000 steps of 128 rows each at most: fewer with fewer training rows, and none
after an epoch with an accuracy of 0.999.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean
from typing import Any, NamedTuple

from sequence.tasks.mad import BASELINES

TRAIN = (6400, 3200, 1600, 800)
FACTORS: dict[str, dict[str, tuple[float, ...]]] = {
    "recall": {"vocabulary": (32, 64, 128), "length": (256, 512, 1024), "train_examples": TRAIN},
    "fuzzy_recall": {"vocabulary": (32, 64, 128), "length": (256, 512, 1024), "train_examples": TRAIN},
    "noisy_recall": {
        "vocabulary": (48, 80, 144), "length": (256, 512, 1024), "train_examples": TRAIN, "noise": (0.4, 0.6, 0.8),
    },
    "selective_copying": {
        "vocabulary": (32, 64, 128), "length": (512, 1024), "train_examples": TRAIN, "copied": (32, 64, 96),
    },
    "compression": {"vocabulary": (32, 64, 128), "length": (64, 128, 256), "train_examples": TRAIN},
    "memorization": {"vocabulary": (512, 1024, 2048, 4096, 8192)},
}  # fmt: skip
"""What is made harder, one factor at a time, by kind."""
SWEEP: dict[str, dict[str, float]] = {
    f"lr={lr} wd={decay}": {"lr": lr, "weight_decay": decay} for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)
}


class Setting(NamedTuple):
    """A label, and the options of `mad` that differ from their defaults."""

    label: str
    options: dict[str, Any]


def settings(kinds: Iterable[str] = tuple(FACTORS), *, harder: bool = True) -> list[Setting]:
    """The settings of these kinds, the published size of each first; without `harder` that one alone."""
    found = []
    for kind in kinds:
        if kind not in BASELINES:
            raise ValueError(f"kinds must be among {', '.join(BASELINES)}, got {kind!r}")
        found.append(Setting(kind, {"kind": kind}))
        if harder:
            found += [
                Setting(f"{kind} {factor}={value}", {"kind": kind, factor: value})
                for factor, values in FACTORS[kind].items()
                for value in values
            ]
    return found


def score(runs: Iterable[tuple[dict[str, Any], float]]) -> dict[str, float]:
    """MAD's score of one mixer, by kind and as "mean": for each setting the best run, then the mean over settings.

    Published: the accuracy at the end of the training, and the best run is chosen on the test. More runs are more to
    choose from, so compare scores of equally many.

    Args:
        runs: options of `mad` and test accuracy of every run.
    """
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for options, accuracy in runs:
        given = {name: value for name, value in sorted(options.items()) if value is not None and name != "data_seed"}
        kind, setting = given.get("kind", "recall"), str(given)
        best[kind][setting] = max(accuracy, best[kind].get(setting, accuracy))
    found = {kind: mean(by_setting.values()) for kind, by_setting in best.items()}
    return found | {"mean": mean(found.values())} if found else {}
