"""What stands below the table of a task: its further test splits, and what its runs say of themselves."""

from __future__ import annotations

import pandas as pd

from matmix.experiments.report.collect import Setting
from matmix.experiments.report.tables import decimals_for, ordered, spread_text
from matmix.experiments.statistics import summarize


def tests_table(setting: Setting) -> pd.DataFrame:
    """One row a mixer: its score on the test and on each further test split, of the same weights."""
    sample = setting.sample
    assert sample is not None
    rows = []
    for mixer, summary in ordered(setting):
        results = [run.result for run in setting.of(mixer) if run.score is not None and run.result is not None]
        row = {"mixer": mixer, "test": spread_text(summary, decimals_for([summary.mean]))}
        for split in splits(setting):
            scores = [result.tests[split][sample.metric] for result in results if result.tests.get(split)]
            found = summarize(scores) if scores else None
            few = "" if len(scores) == len(results) else f" ({len(scores)} of {len(results)} seeds)"
            row[split] = "none" if found is None else spread_text(found, decimals_for([found.mean])) + few
        rows.append(row)
    return pd.DataFrame(rows)


def splits(setting: Setting) -> list[str]:
    """Names of the further test splits of a task, in its order."""
    return list(dict.fromkeys(name for run in setting.finished if run.result for name in run.result.tests))


def notes(setting: Setting) -> list[str]:
    """What runs say of themselves, each sentence once, with the runs that say it."""
    said: dict[str, list[str]] = {}
    for run in setting.runs:
        for note in run.result.notes if run.result else ():
            said.setdefault(note, []).append(f"{run.mixer} seed {run.seed}")
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]
