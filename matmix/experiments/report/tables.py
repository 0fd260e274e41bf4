"""The tables and sentences of a report, each from collected runs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from matmix.experiments.folder import Result, repair
from matmix.experiments.report.collect import Collected, Run, Setting
from matmix.experiments.statistics import Difference, Ranks, Summary, paired_difference, rank, summarize, t_factor


def ordered(setting: Setting) -> list[tuple[str, Summary]]:
    """Mixers with a score, best first."""
    found = [(mixer, summarize(list(scores.values()))) for mixer in setting.mixers if (scores := setting.scores(mixer))]
    sample = setting.sample
    sign = -1 if sample is None or sample.higher_is_better else 1
    return sorted(found, key=lambda item: sign * item[1].mean)


def score_table(setting: Setting, reference: str) -> pd.DataFrame:
    """One row a mixer: score, difference to the reference, rank and costs."""
    sample = setting.sample
    assert sample is not None
    ranks = seed_ranks(setting)
    base = setting.scores(reference)
    best_first = ordered(setting)
    decimals = decimals_for([summary.mean for _, summary in best_first])
    rows = []
    for mixer, summary in best_first:
        rows.append(
            {
                "mixer": mixer,
                f"test {sample.metric}": spread_text(summary, decimals),
                "seeds": _seeds(setting, mixer),
                f"minus {reference}": "reference"
                if mixer == reference
                else difference_text(paired_difference(setting.scores(mixer), base), decimals),
                "rank": f"{ranks.average[mixer]:.1f}" if ranks and mixer in ranks.average else "",
                **costs(setting, mixer),
            }
        )
    return pd.DataFrame(rows)


def costs(setting: Setting, mixer: str) -> dict[str, str]:
    """The cost columns of a mixer, means over its runs."""
    results = [run.result for run in setting.of(mixer) if run.score is not None and run.result is not None]
    return {
        "parameters": _number(_mean(results, "parameters")),
        **({"dead": _number(_mean(results, "dead_parameters"))} if _some_are_dead(setting) else {}),
        "MACs": _number(_mean(results, "macs")),
        "FFT operations": _number(_mean(results, "fft_flops")),
        **({"state bytes": _number(_mean(results, "state_bytes"))} if _has(setting, "state_bytes") else {}),
        **({"tokens/s": _number(_speed(results))} if _has(setting, "tokens") else {}),
        "ms a step": _fixed(_mean(results, "step_seconds"), 1e3),
        "peak MB": _fixed(_mean(results, "peak_memory_bytes"), 1e-6),
    }


def _some_are_dead(setting: Setting) -> bool:
    return any(run.result is not None and run.result.dead_parameters for run in setting.runs)


def seed_ranks(setting: Setting) -> Ranks | None:
    """Ranks of the mixers within each seed; mixers that lack a seed are left out."""
    scores = {mixer: setting.scores(mixer) for mixer in setting.mixers}
    seeds = sorted({seed for found in scores.values() for seed in found})
    whole = {mixer: found for mixer, found in scores.items() if seeds and len(found) == len(seeds)}
    if len(whole) < 2:
        return None
    sample = setting.sample
    table = pd.DataFrame({mixer: [found[seed] for seed in seeds] for mixer, found in whole.items()}, index=seeds)
    return rank(table, higher_is_better=sample is None or sample.higher_is_better)


def task_ranks(settings: Sequence[Setting], data: Mapping[str, str], nemenyi: bool = False) -> Ranks | None:
    """Ranks of the mixers over data sets (mean over seeds), of those that have a score on each.

    Args:
        data: the data set of a setting; of several settings on one, such as horizons, the ranks are averaged first.
        nemenyi: see `rank`.
    """
    columns = {}
    for setting in settings:
        if setting.solved_above is not None:  # by how many seeds solved it, then by the median of these
            values = {mixer: solved_value(setting, mixer) for mixer in setting.mixers if setting.scores(mixer)}
            places = sorted(set(values.values()))
            columns[setting.name] = {mixer: float(places.index(value)) for mixer, value in values.items()}
            continue
        sign = 1 if setting.sample is None or setting.sample.higher_is_better else -1
        columns[setting.name] = {mixer: sign * summary.mean for mixer, summary in ordered(setting)}
    table = pd.DataFrame(columns).dropna().T
    if table.shape[0] < 2 or table.shape[1] < 2:
        return None
    blocks = table.rank(axis=1, ascending=False).groupby([data.get(name, name) for name in table.index]).mean()
    return rank(blocks, higher_is_better=False, nemenyi=nemenyi)


def solved_value(setting: Setting, mixer: str) -> tuple[float, float]:
    """The share of runs that solved the task, then their median, larger is better: what such mixers are ordered by."""
    assert setting.sample is not None
    solved, scores = setting.solved(mixer), setting.scores(mixer)
    sign = 1 if setting.sample.higher_is_better else -1
    return len(solved) / len(scores), sign * median(solved) if solved else float("-inf")


def not_finished(runs: Sequence[Run]) -> pd.DataFrame:
    """Runs that failed, diverged, were interrupted or have a damaged file, with their error."""
    rows = [
        {
            "task": run.setting,
            "mixer": run.mixer,
            "seed": run.seed,
            "status": run.status,
            "step": run.result.step if run.result else max((line["step"] for line in run.curve), default=0),
            "error": _error(run),
        }
        for run in runs
        if run.status not in ("finished", "missing")
    ]
    return pd.DataFrame(rows)


def _error(run: Run) -> str:
    if run.damage:
        return f"{run.damage}. {repair(run.folder)}"
    return (run.result.error or "") if run.result else "no result yet: running, or killed"


def all_runs(collected: Collected) -> pd.DataFrame:
    rows = []
    for run in collected.runs:
        score = run.score
        rows.append(
            {
                "task": run.setting,
                "mixer": run.mixer,
                "seed": run.seed,
                "status": run.status,
                "test": "" if score is None else repr(score),  # to the last digit: the command gives the same
                "seconds": _fixed(run.result.seconds if run.result else None, 1),
                "command": run.command,
                "folder": run.folder.relative_to(collected.folder).as_posix(),
            }
        )
    return pd.DataFrame(rows)


def hints(setting: Setting, reference: str) -> list[str]:
    """What the numbers of a table do and do not say. Each sentence follows from the runs alone."""
    sample = setting.sample
    table = dict(ordered(setting))
    if sample is None or not table:
        return []
    said = []
    best_name, best = next(iter(table.items()))
    trivial = trivial_score(sample)
    if trivial is not None:
        all_trivial = ", ".join(
            f"{name} {scores[sample.metric]:.3g}"
            for name, scores in sample.baselines.items()
            if sample.metric in scores
        )
        said.append(f"Predictors that learn no mixing reach, in {sample.metric}: {all_trivial}.")
        near = [mixer for mixer in table if not _beyond(setting, mixer, trivial[1], sample)]
        if near:
            said.append(
                f"Not clearly better than {trivial[0]!r} ({trivial[1]:.3g}): {', '.join(near)}."
                if len(near) < len(table)
                else f"No mixer is clearly better than {trivial[0]!r} ({trivial[1]:.3g})."
            )
    if "identity" in table:
        said.append(identity_text(setting, table, best_name, best, trivial))
    if reference in table:
        pairs = {
            mixer: paired_difference(setting.scores(mixer), setting.scores(reference))
            for mixer in table
            if mixer != reference
        }
        said += _reference_text(pairs, reference)
    else:
        said.append(f"{reference} has no finished run here, so there are no differences to it.")
    none = [mixer for mixer in setting.mixers if mixer not in table]
    if none:
        states = [f"{mixer} ({', '.join(sorted({run.status for run in setting.of(mixer)}))})" for mixer in none]
        said.append(f"Without a score: {', '.join(states)}.")
    counts = {summary.n for summary in table.values()}
    if max(counts) == 1:
        said.append("One seed each: there is no spread and no interval, and small differences mean nothing.")
    if len(counts) > 1:
        said.append("Mixers have different numbers of finished seeds; differences use the seeds that both have.")
    return said


def identity_text(
    setting: Setting, table: dict[str, Summary], best_name: str, best: Summary, trivial: tuple[str, float] | None
) -> str:
    """What the control says: how far the task is solved without mixing tokens."""
    assert setting.sample is not None
    control = table["identity"]
    text = f"identity mixes no tokens and reaches {control.mean:.3g}"
    if best_name == "identity":
        return f"{text}, the best score here: nothing in this table shows that mixing helps on this task."
    sign = 1 if setting.sample.higher_is_better else -1
    if trivial is not None and sign * (control.mean - trivial[1]) <= 0:
        text += f", which is not better than {trivial[0]!r} ({trivial[1]:.3g}): what comes above that, mixing did"
    elif trivial is not None:
        share = (control.mean - trivial[1]) / (best.mean - trivial[1])
        text += f": {round(100 * share)} % of the way from {trivial[0]!r} ({trivial[1]:.3g}) to the best mixer "
        text += f"({best_name}, {best.mean:.3g}). That part of a score is no evidence of mixing"
    above = []
    for mixer in table:
        apart = paired_difference(setting.scores(mixer), setting.scores("identity")) if mixer != "identity" else None
        if apart is not None and apart.clear and sign * apart.mean > 0:
            above.append(mixer)
    if control.n > 1:
        text += f"; clearly better than identity: {', '.join(above) or 'none'}"
    return text + "."


def trivial_score(sample: Result) -> tuple[str, float] | None:
    """The best of the task's trivial predictors, and its score."""
    scores = {name: found[sample.metric] for name, found in sample.baselines.items() if sample.metric in found}
    if not scores:
        return None
    best = (max if sample.higher_is_better else min)(scores, key=lambda name: scores[name])
    return best, scores[best]


def interval_note(collected: Collected) -> str:
    """How the intervals are made; said once for the page."""
    counts = sorted({len(setting.scores(mixer)) for setting in collected.settings for mixer in setting.mixers} - {0, 1})
    factors = ", ".join(f"{t_factor(n):.2f} for {n} seeds" for n in counts)
    text = (
        "Scores are test scores of the weights that were best on validation: mean ± sample standard deviation over "
        "seeds. Differences are paired by seed (same data order, same initial weights outside of the mixer), with 95 % "
        "intervals of Student's t, each for one comparison: among many mixers some intervals leave out zero by chance."
    )
    return text + (f" An interval reaches so many standard errors to each side: {factors}." if factors else "")


def spread_text(summary: Summary, decimals: int) -> str:
    if summary.spread is None:
        return f"{summary.mean:.{decimals}f}"
    return f"{summary.mean:.{decimals}f} ± {summary.spread:.{decimals}f}"


def difference_text(difference: Difference | None, decimals: int) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.{decimals}f} (one seed: no interval)"
    return f"{difference.mean:+.{decimals}f} [{difference.low:+.{decimals}f}, {difference.high:+.{decimals}f}]"


def decimals_for(values: Sequence[float]) -> int:
    """Four decimals for accuracies and the like, four significant digits for what is large or small."""
    size = max((abs(value) for value in values), default=0.0)
    return 4 if size == 0 or 0.05 <= size < 10 else max(0, 3 - math.floor(math.log10(size)))


def _beyond(setting: Setting, mixer: str, value: float, sample: Result) -> bool:
    """Whether the interval of a mixer's mean lies on the better side of a fixed value."""
    scores = setting.scores(mixer)
    apart = paired_difference(scores, dict.fromkeys(scores, value))
    assert apart is not None
    sign = 1 if sample.higher_is_better else -1
    return sign * apart.mean > 0 and apart.clear is not False


def _reference_text(pairs: dict[str, Difference | None], reference: str) -> list[str]:
    """Which mixers an interval tells apart from the reference, by direction."""
    known = {mixer: pair for mixer, pair in pairs.items() if pair is not None and pair.clear is not None}
    if not known:
        return []
    higher = [mixer for mixer, pair in known.items() if pair.clear and pair.mean > 0]
    lower = [mixer for mixer, pair in known.items() if pair.clear and pair.mean < 0]
    open_ = [mixer for mixer, pair in known.items() if not pair.clear]
    said = [
        f"Interval {where} {reference}: {', '.join(found)}."
        for where, found in (("above", higher), ("below", lower))
        if found
    ]
    if open_:
        said.append(
            f"Not told apart from {reference} by these seeds (which is not the same as equal): {', '.join(open_)}."
        )
    return said


def _seeds(setting: Setting, mixer: str) -> str:
    runs = setting.of(mixer)
    done = len(setting.scores(mixer))
    return f"{done}" if done == len(runs) else f"{done} of {len(runs)}"


def _has(setting: Setting, cost: str) -> bool:
    return any(run.result is not None and getattr(run.result, cost) is not None for run in setting.runs)


def _speed(results: Sequence[Result]) -> float | None:
    """Tokens a second in training, by the example that costs are counted on."""
    found = [
        result.samples_per_second * result.tokens
        for result in results
        if result.samples_per_second is not None and result.tokens is not None
    ]
    return sum(found) / len(found) if found else None


def _mean(results: Sequence[Result], name: str) -> float | None:
    values = [value for result in results if (value := getattr(result, name)) is not None]
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    """Counts with a unit: 12.3 k, 4.56 M."""
    if value is None:
        return ""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def _fixed(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.3g}" if value * factor < 100 else f"{value * factor:.0f}"
