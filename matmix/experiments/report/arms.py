"""What the arms of a table are beside their mixers, and what its controls say."""

from __future__ import annotations

from statistics import median

import pandas as pd

from matmix.experiments.report.collect import Setting
from matmix.experiments.report.tables import costs, decimals_for, solved_value, trivial_score
from matmix.experiments.statistics import paired_difference


def described(setting: Setting) -> list[str]:
    """One sentence for each arm of the study that is more than the spec it is named by."""
    said = []
    for arm in setting.arms:
        changes = {**arm.options, **{f"recipe.{name}": value for name, value in arm.recipe.items()}}
        words = [arm.spec] if arm.spec != arm.name else []
        words += [f"{name}={value}" for name, value in changes.items()]
        if arm.window:
            words.append(f"a token hears {arm.window} tokens over the whole depth")
        if words:
            said.append(f"{arm.name}: {', '.join(words)}.")
    return said


def solved_table(setting: Setting) -> pd.DataFrame:
    """One row a mixer of a task that a run solves or does not: how many did, and the median of those."""
    sample = setting.sample
    assert sample is not None
    rows = []
    for mixer in by_solved(setting):
        solved, scores = setting.solved(mixer), setting.scores(mixer)
        middle = median(solved) if solved else None
        rows.append(
            {
                "mixer": mixer,
                "solved": f"{len(solved)} of {len(scores)} seeds",
                f"median test {sample.metric} of the solved": ""
                if middle is None
                else f"{middle:.{decimals_for([middle])}f}",
                **costs(setting, mixer),
            }
        )
    return pd.DataFrame(rows)


def by_solved(setting: Setting) -> list[str]:
    """Mixers with a score: those whose runs learnt the task most often first, then by the median of these runs."""
    found = [mixer for mixer in setting.mixers if setting.scores(mixer)]
    return sorted(found, key=lambda mixer: solved_value(setting, mixer), reverse=True)


def solved_text(setting: Setting) -> list[str]:
    """How such a table is to be read."""
    sample = setting.sample
    assert sample is not None and sample.solved_above is not None
    side = "above" if sample.higher_is_better else "below"
    said = [
        f"A run solves this task or stays at chance. Solved: a test {sample.metric} {side} {sample.solved_above:.4g}. "
        "The two kinds are never averaged; the median is that of the solved runs."
    ]
    never = [mixer for mixer in by_solved(setting) if not setting.solved(mixer)]
    if never:
        said.append(f"At chance with every seed: {', '.join(never)}.")
    return said


def local_text(setting: Setting) -> list[str]:
    """Whether arms that see a window of tokens come as far as the best mixer: then the task is local."""
    windows = {arm.name: arm.window for arm in setting.arms if arm.window and setting.scores(arm.name)}
    others = [mixer for mixer in setting.mixers if mixer not in windows and setting.scores(mixer)]
    sample = setting.sample
    if sample is None or not windows or not others:
        return []
    if setting.solved_above is not None:
        rates = {mixer: solved_value(setting, mixer) for mixer in (*windows, *others)}
        best = max(others, key=lambda mixer: rates[mixer])
        enough = [name for name in windows if setting.solved(name) and rates[name][0] >= rates[best][0]]
        return [_verdict(windows, enough, best, "solves it as often as")]
    sign = 1 if sample.higher_is_better else -1
    means = {mixer: sum(found.values()) / len(found) for mixer in others if (found := setting.scores(mixer))}
    best = max(means, key=lambda mixer: sign * means[mixer])
    trivial = trivial_score(sample)
    enough, unknown = [], False
    for name in windows:
        apart = paired_difference(setting.scores(name), setting.scores(best))
        if apart is None:
            continue
        behind = sign * apart.mean < 0
        unknown |= behind and apart.clear is None
        above = trivial is None or all(sign * (score - trivial[1]) > 0 for score in setting.scores(name).values())
        if above and (not behind or apart.clear is False):
            enough.append(name)
    if unknown and not enough:
        return ["Whether this task is local cannot be said with one seed."]
    return [_verdict(windows, enough, best, "is not told apart from")]


def _verdict(windows: dict[str, int], enough: list[str], best: str, how: str) -> str:
    if enough:
        least = min(enough, key=lambda name: windows[name])
        return (
            f"LOCAL: {least}, where a token hears {windows[least]} tokens over the whole depth, {how} {best}. These "
            "numbers are no evidence of long range."
        )
    widest = max(windows.values())
    return f"Not local: no window of up to {widest} tokens over the whole depth comes as far as {best}."


def published_table(setting: Setting) -> pd.DataFrame | None:
    """Published scores that were got under the settings of this table; None where there are none."""
    sample = setting.sample
    rows = [
        {
            "published": name,
            f"test {sample.metric}": f"{scores[sample.metric]:.4g}" if sample.metric in scores else "at chance",
        }
        for name, scores in (sample.published if sample else {}).items()
        if sample is not None
    ]
    return pd.DataFrame(rows) if rows else None
