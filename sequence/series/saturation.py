"""Whether a data set still tells forecasters apart: the best naive forecast, DLinear, the best arm, and the noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean, stdev

from matmix.experiments.task import Scored
from matmix.spec import parse_spec

SIMPLE = "dlinear"
"""The model that others have to beat: two linear layers along time."""


def saturation(runs: Iterable[Scored]) -> list[str]:
    """A line for each data set, look-back, horizon and protocol of finished runs of the task `forecast`.

    An arm is a model with a mixer. The gap between the best one and DLinear is held against the spread over seeds: the
    larger standard deviation of the two. What is smaller than that is no difference between models. A seed of an arm
    counts once, in however many tables it stands.
    """
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    naive: dict[str, tuple[float, str]] = {}
    for run in runs:
        steps = f"{run.facts['steps read']} to {run.facts['steps to forecast']}"
        where = f"{run.options['data']}, {steps}, {run.options['protocol']}"
        model = parse_spec(run.options["architecture"])[0].name
        # An arm of DLinear may have a name of its own.
        found[where][model, run.mixer if model == SIMPLE else run.arm][run.seed] = run.score
        naive[where] = min((score, name) for name, score in run.baselines.items())
    lines = []
    for where, arms in sorted(found.items()):
        scores = {arm: list(by_seed.values()) for arm, by_seed in arms.items()}
        lines.append(f"{where}: {_line(scores, *naive[where])}")
    return lines


def _line(arms: dict[tuple[str, str], list[float]], naive: float, name: str) -> str:
    simple = [scores for (model, mixer), scores in arms.items() if model == SIMPLE and mixer in ("", "default")]
    others = {arm: scores for arm, scores in arms.items() if arm[0] != SIMPLE}
    said = [f"{name} {naive:.3f}"]
    if simple:
        said.append(f"{SIMPLE} {_mean(simple[0])}")
    if not others:
        return "; ".join(said)
    (model, mixer), best = min(others.items(), key=lambda arm: mean(arm[1]))
    said.append(f"best arm {model} with {mixer or 'default'} {_mean(best)}")
    if simple:
        gap, spreads = mean(simple[0]) - mean(best), [stdev(scores) for scores in (simple[0], best) if len(scores) > 1]
        verdict = "one seed says nothing of the spread"
        if len(spreads) == 2:
            above = "more than" if abs(gap) > max(spreads) else "within"
            verdict = f"the gap of {gap:+.4f} is {above} the spread over seeds, {max(spreads):.4f}"
        said.append(verdict)
    return "; ".join(said)


def _mean(scores: list[float]) -> str:
    return f"{mean(scores):.4f}" + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else "")
