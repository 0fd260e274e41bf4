"""Whether a data set still tells forecasters apart: the best naive forecast, DLinear, the best arm, and the noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean, stdev

from matmix.experiments.report.collect import Run
from matmix.spec import parse_spec

SIMPLE = "dlinear"
"""The model that others have to beat: two linear layers along time."""


def saturation(runs: Iterable[Run]) -> list[str]:
    """A line for each data set, look-back and horizon of finished runs of the task `forecast`.

    An arm is a model with a mixer. The gap between the best one and DLinear is held against the spread over seeds: the
    larger standard deviation of the two. What is smaller than that is no difference between models.
    """
    found: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    naive: dict[str, tuple[float, str]] = {}
    for run in runs:
        result = run.result
        if run.score is None or result is None or result.config["task"].rpartition(":")[2].lower() != "forecast":
            continue
        options, facts, metric = result.config["options"], result.facts, result.metric
        where = f"{options['data']}, {facts['steps read']} to {facts['steps to forecast']}, {options['protocol']}"
        found[where][parse_spec(options["architecture"])[0].name, run.mixer].append(run.score)
        naive[where] = min((scores[metric], name) for name, scores in result.baselines.items())
    return [f"{where}: {_line(arms, *naive[where])}" for where, arms in sorted(found.items())]


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
