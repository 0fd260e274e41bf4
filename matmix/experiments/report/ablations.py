"""What trained matrices do: the change of a score when they are exchanged, as `Surgery.ablate` had it measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import pandas as pd

from matmix.experiments.operation import ABLATIONS, INPUT
from matmix.experiments.report.collect import Collected, Setting
from matmix.experiments.report.tables import ordered

WORDS = {
    "zero": "matrices zeroed",
    "diagonal": "diagonal alone",
    "shuffle_rows": "rows shuffled",
    "mean": "mean matrix",
    INPUT: "input shuffled",
}
METHOD = (
    "The same trained weights, scored again on the test with other matrices: all zero; their diagonal alone; their "
    "rows in a drawn order; the mean over training batches for every example. Last, the inputs in a drawn order. "
    "Change of the score in per cent, mean over seeds and, in brackets, the largest of a seed. Near zero, the model "
    "does without; a matrix that holds an identity loses this too, so see the diagonal. A change says what these "
    "weights owe to the matrix, not what a model could have learnt without it."
)


def changes(setting: Setting, mixer: str, how: str) -> list[float]:
    """Of each finished run, the change of the test score as a share of it."""
    sample, found = setting.sample, []
    for run in setting.of(mixer):
        after = run.result.ablations.get(how, {}) if run.result is not None else {}
        if sample is not None and run.score and sample.metric in after:
            found.append((after[sample.metric] - run.score) / abs(run.score))
    return found


def ablation_table(setting: Setting) -> pd.DataFrame | None:
    """A row an arm, best first; None where nothing was ablated."""
    rows = []
    for mixer, _ in ordered(setting):
        cells = {WORDS[how]: _cell(changes(setting, mixer, how)) for how in ABLATIONS}
        if any(cells.values()):
            rows.append({"mixer": mixer, **cells})
    return pd.DataFrame(rows) if rows else None


def sentences(collected: Collected, margin: float) -> list[str]:
    """Of each arm that mixes tokens, where its matrices do nothing that the margin would show."""
    zeroed: dict[str, list[tuple[str, float]]] = {}
    apart: dict[str, list[tuple[str, float]]] = {}
    mixing: dict[str, int] = {}
    for setting in collected.settings:
        for mixer in setting.mixers if setting.sample is not None else ():
            zero, diagonal = (changes(setting, mixer, how) for how in ("zero", "diagonal"))
            if not any(diagonal):  # a diagonal matrix mixes no tokens, which is no finding
                continue
            mixing[mixer] = mixing.get(mixer, 0) + 1
            for found, one in ((zeroed, zero), (apart, diagonal)):
                if one and max(map(abs, one)) < margin:
                    found.setdefault(mixer, []).append((setting.name, max(one, key=abs)))
    said = []
    for mixer, count in mixing.items():
        nothing = zeroed.get(mixer, [])
        alone = [one for one in apart.get(mixer, []) if one[0] not in {name for name, _ in nothing}]
        for places, what in ((nothing, "do nothing: zeroed"), (alone, "need not mix: with their diagonal alone")):
            if places:
                change = f"the score changes by at most {_most(places)} on {_where(places, count)}"
                said.append(f"The matrices of {mixer} {what}, {change}.")
    return said


def _most(found: Sequence[tuple[str, float]]) -> str:
    return f"{100 * max(abs(change) for _, change in found):.2g} %"


def _where(found: Sequence[tuple[str, float]], count: int) -> str:
    names = ", ".join(name for name, _ in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return names if len(found) == count <= 4 else f"{names} ({len(found)} of {count})"


def _cell(found: Sequence[float]) -> str:
    if not found:
        return ""
    most = max(found, key=abs)
    return f"{100 * mean(found):+.2f}" + (f" ({100 * most:+.2f})" if len(found) > 1 else "")
