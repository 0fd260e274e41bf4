"""The first lines of a report: what a study with a margin found, in words, then its table and its forest plot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from matmix.experiments.blocks import Examples, block_interval, block_length, read_examples
from matmix.experiments.fev import fev_table
from matmix.experiments.folder import Result
from matmix.experiments.report import page
from matmix.experiments.report.ablations import sentences
from matmix.experiments.report.collect import Collected
from matmix.experiments.report.forest import MOST_ROWS, forest_picture, forest_rows
from matmix.experiments.report.over_data import over_data_blocks
from matmix.experiments.verdicts import COLUMNS, KINDS, Kind, Verdict, percent, verdicts
from matmix.files import Damaged

NUMBERS = frozenset({"seeds", "reference", "p equal", "p differ"})
CONTROL = "identity"
METHOD = (
    "Differences to {reference} are paired by seed, in per cent of its score, with 90 % intervals. Equivalent: two "
    "one-sided t-tests put the difference within {margin} on either side. Better or worse: not equivalent, and the "
    "two-sided paired t-test finds a difference. Both p are corrected by Holm over the models and data sets of an arm, "
    "and decide at 5 %; intervals are not corrected. Undecided is not equal. Further seeds: for a power of 80 %, "
    "if difference and spread stay what they are. Seeds say nothing about new data."
)


def run_table(collected: Collected) -> pd.DataFrame:
    """The runs of a study as `verdicts` takes them; tasks that a run solves or does not are left out: their scores have
    no mean."""
    named = {label: task for label, task, _ in collected.study.settings()} if collected.study else {}
    rows = []
    for setting in collected.settings:
        sample, task = setting.sample, named.get(setting.name)
        if sample is None or setting.solved_above is not None:
            continue
        model = task.model if task else ""
        data = (task.data if task else "") or setting.name
        for run in setting.runs:
            score = math.nan if run.score is None else run.score
            about = (sample.metric, sample.higher_is_better)
            seconds = run.result.seconds if run.result and run.result.seconds is not None else math.nan
            more = (seconds, sample.facts.get("steps to forecast", 0), _windows(sample))
            rows.append((setting.name, model, data, run.mixer, run.seed, score, run.status, *about, *more))
    return pd.DataFrame(rows, columns=[*COLUMNS, "seconds", "horizon", "windows"])


def _windows(sample: Result) -> int:
    """Forecasts of the test split; 0 where the task does not say."""
    found = sample.facts.get("windows")
    return int(found.get("test", 0)) if isinstance(found, dict) else 0


def _baselines(collected: Collected) -> dict[str, dict[str, float]]:
    """Test scores of predictors without training, by setting."""
    samples = {setting.name: setting.sample for setting in collected.settings}
    return {
        name: {arm: scores[sample.metric] for arm, scores in sample.baselines.items() if sample.metric in scores}
        for name, sample in samples.items()
        if sample is not None
    }


def answer(collected: Collected, reference: str, out: Path) -> tuple[list[page.Block], list[page.Block]]:
    """What is said before all else, and the section on verdicts below; nothing where the study has no margin."""
    margin = collected.study.margin if collected.study else 0.0
    if not margin:
        return [], []
    runs = run_table(collected)
    found = verdicts(runs, reference, margin)
    if not found:
        return [page.Answer(f"No answer yet: no arm has a finished run beside one of {reference}.")], []
    table = verdict_table(found)
    other, spans = new_data(collected, found)
    if any(other):
        table.insert(list(table.columns).index("change, %") + 1, "on new data, %", other)
    table.to_csv(out / "verdicts.csv", index=False)
    fev_table(runs, _baselines(collected)).to_csv(out / "fev.csv", index=False)
    blocks: list[page.Block] = [
        page.Heading(2, "Verdicts"),
        page.Text(METHOD.format(reference=reference, margin=percent(margin))),
        *([page.Text(NEW_DATA.format(spans=spans))] if any(other) else []),
        page.Table(table, NUMBERS),
    ]
    if forest_picture(found, out / "verdicts.png"):
        rows = forest_rows(found)
        shown = f" (the {MOST_ROWS} largest changes)" if len(found) > MOST_ROWS else ""
        said = "; ".join(f"{one.arm} on {one.place} {one.change}, {one.kind}" for one in rows[:12])
        more = f"; and {len(rows) - 12} more, see the table" if len(rows) > 12 else ""
        alt = f"Forest plot of the change against {reference}, margin of {percent(margin)} shaded{shown}: {said}{more}"
        blocks.append(page.Picture(out / "verdicts.png", alt))
    left = [setting.name for setting in collected.settings if setting.solved_above is not None]
    if left:
        blocks.append(page.Text(f"No verdict where a run solves its task or stays at chance: {', '.join(left)}."))
    blocks += over_data_blocks(found, runs, reference)
    first = [*headline(found), *sentences(collected, margin)]
    return [*(page.Answer(text) for text in first), *_changed(collected, margin)], blocks


NEW_DATA = (
    "On new data: what other test data of the same kind would do to these trained models, a 95 % interval by a "
    "moving-block bootstrap over the test examples, mean over seeds. Blocks are of at least {spans} neighbouring "
    "examples, those that may share data."
)


def new_data(collected: Collected, found: Sequence[Verdict]) -> tuple[list[str], str]:
    """The change of each verdict with its interval over test examples, "" where they were not kept; and how many
    examples a block has, in words."""
    folders = {(run.setting, run.mixer, run.seed): run.folder for run in collected.runs if run.score is not None}
    seeds = sorted({seed for _, _, seed in folders})
    held: dict[tuple[str, str, int], Examples | None] = {}
    said, spans = [], set()
    for one in found:
        pairs = []
        for seed in seeds:
            keys = [(one.setting, arm, seed) for arm in (one.arm, one.reference)]
            for key in keys:
                if key not in held:
                    held[key] = _examples(collected, folders[key]) if key in folders else None
            arm, base = (held[key] for key in keys)
            if arm is not None and base is not None and np.array_equal(arm.weights, base.weights):
                pairs.append(arm._replace(scores=arm.scores - base.scores))
        interval = None
        if pairs and len({len(pair.scores) for pair in pairs}) == 1 and one.base:
            block = block_length(len(pairs[0].scores), max(pair.span for pair in pairs))
            spans.add(block)
            weights = np.mean([pair.weights for pair in pairs], 0)
            sums = np.mean([pair.scores * pair.weights for pair in pairs], 0)
            differences = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
            interval = block_interval(differences, block, weights=weights)
        shares = [100 * one.share(x) for x in (interval.low, interval.high)] if interval else []
        said.append(f"[{shares[0]:+.2f}, {shares[1]:+.2f}]" if shares else "")
    return said, " or ".join(f"{span:,}" for span in sorted(spans))


def _examples(collected: Collected, folder: Path) -> Examples | None:
    """Scores of test examples; a file that is damaged is named in the report, and left out."""
    try:
        return read_examples(folder)
    except Damaged as error:
        collected.problems.append(f"{error}. It is passed over.")
        return None


def headline(found: Sequence[Verdict]) -> list[str]:
    """The answer in two or three sentences, for a reader who reads no further."""
    arms: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in found:
        arms[verdict.arm].append(verdict)
    one, places = found[0], len({verdict.setting for verdict in found})
    within = f"equivalent to {one.reference} within {percent(one.margin)}"
    everywhere = [arm for arm, mine in arms.items() if all(verdict.kind == "equivalent" for verdict in mine)]
    where = f"on all {places} models and data sets" if places > 1 else f"on {one.place}"
    said = [f"{within[0].upper()}{within[1:]} {where}: {_list(everywhere)}."]
    for kind in ("better", "worse", "undecided"):
        counts = {arm: sum(verdict.kind == kind for verdict in mine) for arm, mine in arms.items()}
        named = [
            arm if counts[arm] == len(mine) else f"{arm} ({counts[arm]} of {len(mine)})"
            for arm, mine in arms.items()
            if counts[arm]
        ]
        if named or kind != "undecided":
            said.append(f"{kind.capitalize()}: {_list(named)}.")
    texts = [" ".join(said)]
    if CONTROL in arms:
        texts.append(_control(arms[CONTROL]))
    return texts


def _control(mine: Sequence[Verdict]) -> str:
    """What the arm without mixing says about all others."""
    by_kind: dict[Kind, list[Verdict]] = {kind: [one for one in mine if one.kind == kind] for kind in KINDS}
    free = by_kind["equivalent"] + by_kind["better"]
    said = f"{CONTROL} mixes no tokens"
    if len(free) == len(mine):
        return f"{said} and is as good as {mine[0].reference}: what that reaches here needs no mixing."
    if by_kind["worse"]:
        worst = max(by_kind["worse"], key=lambda one: abs(one.share(one.mean)))
        said += f": it is worse on {len(by_kind['worse'])} of {len(mine)}"
        said += f" (most on {worst.place}, {worst.change}), so there mixing matters"
    else:
        said += f" and is not shown to be worse on any of {len(mine)}"
    if free:
        said += f"; as good as {mine[0].reference} on {_list([one.place for one in free])}, so there it does not"
    return f"{said}."


def _changed(collected: Collected, margin: float) -> Iterable[page.Block]:
    """Whether the margin is the one that was said before the first run."""
    before = {session["margin"] for session in collected.sessions if "margin" in session} - {margin}
    if before:
        named = ", ".join(percent(value) if value else "none" for value in sorted(before))
        yield page.Text(f"The margin was changed after runs had been made: it was {named} then.")


def verdict_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """A row a verdict."""
    rows = [
        {
            **({"model": one.model} if any(each.model for each in found) else {}),
            "data": one.setting if one.data == one.setting or not one.model else one.data,
            "arm": one.arm,
            "verdict": one.word,
            "change, %": one.change.replace(" %", ""),
            "seeds": str(one.n),
            "reference": "" if math.isnan(one.base) else f"{one.base:.4g}",
            "p equal": _p(one.p_equal),
            "p differ": _p(one.p_differ),
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"
