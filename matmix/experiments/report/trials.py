"""What each trial of a study that tunes gave, chosen or not."""

from __future__ import annotations

from statistics import mean

import pandas as pd

from matmix.experiments.report.collect import Setting
from matmix.experiments.report.tables import decimals_for

METHOD = (
    "Every arm was trained with the same trials on the same seeds. The one that is best on validation, in the mean "
    "over seeds, is in all tables and is marked here; the test chose nothing. Scores on validation, of finished runs."
)


def trials_table(setting: Setting) -> pd.DataFrame:
    """A row an arm, a column a trial."""
    chosen = {run.mixer: run.trial for run in setting.runs}
    sign = 1 if setting.sample is None or setting.sample.higher_is_better else -1
    names = [trial for trial in dict.fromkeys(run.trial for run in setting.tried) if trial]
    rows = []
    for mixer in setting.mixers:
        row = {"mixer": mixer}
        for trial in names:
            runs = [run for run in setting.tried if (run.mixer, run.trial) == (mixer, trial)]
            found = [sign * run.validation for run in runs if run.validation is not None]
            short = f" ({len(found)} of {len(runs)})" if len(found) < len(runs) else ""
            mark = " chosen" if chosen[mixer] == trial and found else ""
            row[trial] = f"{mean(found):.{decimals_for([mean(found)])}f}{mark}{short}" if found else f"none{short}"
        rows.append(row)
    return pd.DataFrame(rows)
