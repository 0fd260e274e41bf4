"""The report of a study: ``report/index.html`` and ``report/report.md``, made from the run folders alone.

It runs no code that these name: pictures of mixers from a file of the user's, and what a task from one says of all its
runs, are there where the file was imported before, as by ``matmix report FOLDER --import FILE``.

It can be written at any time; what is missing, failed or diverged is listed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from matmix.experiments.checkpoint import write_file
from matmix.experiments.plugins import NotNamed, data_only, import_code
from matmix.experiments.registry import task_class
from matmix.experiments.report import ablations, arms, further, page, tables, trials
from matmix.experiments.report.answer import answer
from matmix.experiments.report.collect import Collected, Setting, collect
from matmix.experiments.report.folder import NAME, exchanged
from matmix.experiments.report.forest import critical_difference
from matmix.experiments.statistics import Ranks

__all__ = ["write_report"]

COSTS = (
    "MACs and FFT operations (5 N log2 N) are those of one forward of one example; elementwise work is not counted. "
    "Dead parameters, where there are any, are those that no gradient reaches from the outputs. "
    "Peak memory is the most that one training step has alive: weights, gradients, optimiser state, activations. "
    "State bytes are what the mixers keep of one example to go on token by token; nothing stands where one cannot. "
    "Tokens/s are examples a second in training, times the tokens of that example."
)
PICTURED, SOME = 24, 4
"""So many settings all have pictures; of more, the first few: each takes seconds, hundreds make a page too large."""
NUMBERS = frozenset({
    "seeds", "rank", "parameters", "dead", "MACs", "FFT operations", "state bytes", "tokens/s", "ms a step", "peak MB",
    "seconds",
})  # fmt: skip


def write_report(
    study_dir: Path | str,
    *,
    reference: str | None = None,
    matrices: bool = True,
    pictured: int | None = None,
    nemenyi: bool = False,
) -> Path:
    """Write the report of a study (or of any folder of runs) and return the path of its HTML page.

    Args:
        study_dir: the folder of the study.
        reference: the mixer that differences are taken to; the study's own where absent.
        matrices: load the best weights of each mixer and draw a learned matrix.
        pictured: how many settings have pictures; where absent, all of up to 24, and 4 of more. The tables are of all.
        nemenyi: Nemenyi's test for ranks over data sets in place of Wilcoxon's with Holm's correction.

    Raises:
        ValueError: if there is no run in the folder, no run of ``reference``, or a `report/` that is somebody else's.
    """
    folder = Path(study_dir)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    collected = collect(folder)
    mixers = sorted({run.mixer for run in collected.runs})
    if reference is not None and reference not in mixers:
        raise ValueError(f"reference must be a mixer of the study ({', '.join(mixers)}), got {reference!r}")
    reference = reference or (collected.study.reference if collected.study else "attention")

    with exchanged(folder) as fresh, _plain_pictures():
        _write(collected, reference, fresh, matrices, pictured, nemenyi)
    return folder / NAME / "index.html"


def _write(
    collected: Collected, reference: str, fresh: Path, matrices: bool, pictured: int | None, nemenyi: bool
) -> None:
    """The files of a report, in a folder."""
    problems = _not_imported(collected)
    said, judged = answer(collected, reference, fresh)
    blocks = [*said, *_summary(collected, reference, judged, fresh, nemenyi)]
    if pictured is None:
        pictured = len(collected.settings) if len(collected.settings) <= PICTURED else SOME
    for index, setting in enumerate(collected.settings):
        blocks += _section(setting, index, reference, fresh, matrices, problems, index < pictured)
    if len(collected.settings) > pictured:
        blocks.append(
            page.Text(
                f"Pictures are of the first {pictured} of {len(collected.settings)} settings; matmix report "
                f"--pictured {len(collected.settings)} draws all."
            )
        )
    blocks += _details(collected)
    title = f"Study {collected.study.name}" if collected.study else f"Runs in {collected.folder.name}"
    blocks = [page.Heading(1, title), *blocks]
    write_file(fresh / "runs.csv", page.to_csv(tables.all_runs(collected)).encode())
    write_file(fresh / "report.md", page.to_markdown(blocks).encode())
    write_file(fresh / "index.html", page.to_html(blocks, title).encode())


@contextmanager
def _plain_pictures() -> Iterator[None]:
    """Names in pictures are text: `$` is no formula. What a font lacks is drawn as a box, and not warned of."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")
        yield


def _not_imported(collected: Collected) -> list[str]:
    """The study's own files that nobody has imported here, and what to do for their pictures."""
    said = []
    for source in collected.study.imports if collected.study else ():
        try:
            with data_only():
                import_code(source)
        except NotNamed:
            said.append(f"{source} is not imported here: {_including(collected, source)}")
    return said


def _including(collected: Collected, source: str) -> str:
    return f"matmix report {collected.folder} --import {source} includes it."


def _summary(
    collected: Collected, reference: str, judged: Sequence[page.Block], out: Path, nemenyi: bool
) -> list[page.Block]:
    """What was run and how far it is, with the section of verdicts."""
    runs = collected.runs
    counts = Counter(run.status for run in runs)
    blocks: list[page.Block] = []
    if collected.study and collected.study.note:
        blocks.append(page.Text(collected.study.note))
    sizes = [len({getattr(run, name) for run in runs}) for name in ("setting", "mixer", "seed")]
    grid = ", ".join(
        f"{size} {word}{'s' * (size > 1)}" for size, word in zip(sizes, ("task", "mixer", "seed"), strict=True)
    )
    how = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    blocks.append(page.Text(f"{len(runs)} runs ({grid}): {how}."))
    missing = [run for run in runs if run.status == "missing"]
    if missing:
        by_arm = Counter(f"{run.mixer} on {run.setting}" for run in missing)
        names = [f"{arm} ({count} seed{'s' * (count > 1)})" for arm, count in by_arm.items()]
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        blocks.append(page.Text(f"Not run yet: {', '.join(names[:12])}{more}."))
    bad = tables.not_finished(runs)
    if len(bad):
        blocks += [
            page.Heading(3, "Runs without a score"),
            page.Text("They are left out of the tables and means below."),
            page.Table(bad, frozenset({"seed", "step"})),
        ]
    if collected.problems:
        blocks += [page.Heading(3, "Files that cannot be read"), page.Items(collected.problems)]
    blocks += judged
    blocks.append(page.Text(tables.interval_note(collected)))
    scored = [setting for setting in collected.settings if setting.finished]
    data = {label: task.data or label for label, task, _ in collected.study.settings()} if collected.study else {}
    ranks = tables.task_ranks(scored, data, nemenyi)
    if ranks is not None:
        frame = pd.DataFrame(
            [
                {"mixer": mixer, "mean rank": f"{value:.2f}"}
                for mixer, value in sorted(ranks.average.items(), key=_second)
            ]
        )
        method = f"{ranks.note}{'' if ranks.p is None else f'; p = {ranks.p:.3g}'}"
        blocks += [
            page.Heading(2, "Ranks over tasks"),
            page.Text(f"Mean over seeds on each task, 1 is best, mixers with a score on every task. {method}."),
            page.Table(frame, frozenset({"mean rank"})),
        ]
        order = ", ".join(f"{mixer} {value:.2f}" for mixer, value in sorted(ranks.average.items(), key=_second))
        alt = f"Critical-difference diagram, a bar joins mixers that the test does not tell apart; ranks: {order}"
        blocks += page.drawn(lambda path: critical_difference(ranks, path), out / "ranks.png", alt)
        blocks += _told_apart(ranks, reference)
    said = _together(collected)
    if said:
        blocks += [page.Heading(2, "All settings together"), page.Items(said)]
    return blocks


def _together(collected: Collected) -> list[str]:
    """What the tasks say of all their runs, over the tables; see `Task.together`."""
    said: list[str] = []
    for name, runs in collected.by_task().items():
        try:
            with data_only():
                said += task_class(name).together(runs)
        except NotNamed:
            said.append(
                f"What {name} says of all its runs is left out: {_including(collected, name.rpartition(':')[0])}"
            )
        except Exception as error:  # a task that is not here any more; the report is of what was run
            said.append(f"{name} says nothing of all its runs: {type(error).__name__}: {error}")
    return said


def _told_apart(ranks: Ranks, reference: str) -> list[page.Block]:
    """What the test of ranks finds, with the pairs of the reference by name."""
    if ranks.p is None:
        return []
    pairs = [pair for pair in ranks.pairs if ranks.differs(*pair)]
    named = [f"{b if a == reference else a} (p = {ranks.pairs[a, b]:.2g})" for a, b in pairs if reference in (a, b)]
    text = f"Told apart at 5 %: {len(pairs)} of {len(ranks.pairs)} pairs"
    return [page.Text(f"{text}; from {reference}: {', '.join(named) or 'none'}.")]


def _section(
    setting: Setting, index: int, reference: str, out: Path, matrices: bool, problems: Sequence[str], pictured: bool
) -> list[page.Block]:
    """One task: table, hints, pictures."""
    from matmix.experiments.report import pictures

    blocks: list[page.Block] = [page.Heading(2, setting.name)]
    sample = setting.sample
    if sample is None:
        blocks.append(page.Text("No run is finished."))
    else:
        options = ", ".join(f"{key}={value}" for key, value in sample.config["options"].items())
        recipe = ", ".join(f"{key}={value}" for key, value in sample.config["recipe"].items())
        facts = ", ".join(f"{key} {value}" for key, value in sample.facts.items())
        blocks.append(page.Text(f"Task {sample.config['task']}: {options}."))
        blocks.append(page.Text(f"Recipe: {recipe}."))
        if facts:
            blocks.append(page.Text(f"Data: {facts}."))
        blocks += _solved(setting) if setting.solved_above is not None else _scores(setting, reference)
        found = arms.published_table(setting)
        if found is not None:
            blocks += [
                page.Heading(3, "Published"),
                page.Text("Got by others under the settings and the recipe of this table."),
                page.Table(found),
            ]
        if setting.tried:
            blocks += [page.Heading(3, "Tuning"), page.Text(trials.METHOD), page.Table(trials.trials_table(setting))]
        lost = ablations.ablation_table(setting)
        if lost is not None:
            blocks += [page.Heading(3, "What the matrices do"), page.Text(ablations.METHOD), page.Table(lost)]
        if further.splits(setting):
            blocks += [
                page.Heading(3, "Further tests"),
                page.Text(f"{sample.metric} of the same weights on other test splits, which chose nothing."),
                page.Table(further.tests_table(setting)),
            ]
        notes = further.notes(setting)
        if notes:
            blocks += [page.Heading(3, "Notes of the runs"), page.Items(notes)]
    if not pictured:
        return blocks
    slug = f"{index + 1}-{''.join(c if c.isalnum() else '-' for c in setting.name)[:30]}"
    if setting.solved_above is None:
        blocks += page.drawn(lambda path: pictures.cost_picture(setting, path), out / f"{slug}-cost.png",
                             f"{setting.name}: score against cost")  # fmt: skip
    blocks += page.drawn(lambda path: pictures.curves_picture(setting, path), out / f"{slug}-curves.png",
                         f"{setting.name}: learning curves")  # fmt: skip
    if matrices and sample is not None:
        drawn, failed = pictures.matrices_picture(setting, out / f"{slug}-matrices.png")
        if drawn:
            blocks.append(page.Picture(out / f"{slug}-matrices.png", f"{setting.name}: learned matrices"))
        if failed:
            said = [*problems, *failed]
            blocks.append(
                page.Fold(f"{len(failed)} mixer{'s' * (len(failed) > 1)} without a picture", [page.Items(said)])
            )
    return blocks


def _scores(setting: Setting, reference: str) -> list[page.Block]:
    """The table of a task whose scores have a mean, and how it is to be read."""
    blocks: list[page.Block] = [page.Table(tables.score_table(setting, reference), NUMBERS)]
    ranks = tables.seed_ranks(setting)
    if ranks is not None:
        test = "" if ranks.p is None else f"; p = {ranks.p:.3g}"
        blocks.append(page.Text(f"Rank: mean over seeds, mixers with all seeds. {ranks.note}{test}."))
        blocks += _told_apart(ranks, reference)
    said = [*arms.described(setting), *tables.hints(setting, reference), *arms.local_text(setting)]
    return [*blocks, page.Text(COSTS), page.Heading(3, "Reading this table"), page.Items(said)]


def _solved(setting: Setting) -> list[page.Block]:
    """The table of a task that a run solves or does not."""
    said = [*arms.described(setting), *arms.solved_text(setting), *arms.local_text(setting)]
    return [
        page.Table(arms.solved_table(setting), NUMBERS),
        page.Text(COSTS),
        page.Heading(3, "Reading this table"),
        page.Items(said),
    ]


def _details(collected: Collected) -> list[page.Block]:
    """Versions, machine, commands: what is needed to do it again."""
    blocks: list[page.Block] = [page.Heading(2, "How it was run")]
    if collected.sessions:
        frame = pd.DataFrame(
            [
                {
                    "started": session["started"],
                    "ended": session["ended"] or "killed, or running",
                    "seconds": session.get("seconds", ""),
                    "runs to do": session["pending"],
                    "jobs": "Ray" if session["ray"] else session["jobs"],
                    "threads a run": session["threads"],
                    "command": session["command"],
                }
                for session in collected.sessions
            ]
        )
        blocks.append(page.Table(frame, frozenset({"seconds", "runs to do", "jobs", "threads a run"})))
        if any(session["jobs"] > 1 or session["ray"] for session in collected.sessions):
            blocks.append(
                page.Text(
                    "Several runs shared the machine, so times of a step are those of a busy machine; compare them "
                    "within this report only."
                )
            )
    where = Counter(_environment(run.result.environment) for run in collected.runs if run.result)
    for (machine, versions), count in where.most_common():
        head = f"{count} run{'s' * (count > 1)} on" if len(where) > 1 else "Machine:"
        blocks += [page.Text(f"{head} {machine}."), page.Text(f"Versions: {versions}.")]
    said = page.Text(
        "On the machine above, each command gives the number beside it to the last digit. It makes a run of its own in "
        "repeat/, below the folder where it is started."
    )
    every = page.Table(tables.all_runs(collected), frozenset({"seed", "test", "seconds"}))
    blocks.append(page.Fold("All runs, and the command that repeats each", [said, every]))
    return blocks


def _environment(about: dict[str, Any]) -> tuple[str, str]:
    """Machine and versions in words; equal ones fall together."""
    gpus = ", ".join(about.get("gpu") or []) or "no GPU"
    machine = f"{about.get('cpu') or 'unknown CPU'}, {about.get('cores')} cores, {gpus}, {about.get('platform')}"
    versions = [f"Python {about.get('python')}"]
    versions += [f"{name} {version}" for name, version in (about.get("versions") or {}).items()]
    if about.get("revision"):
        versions.append(f"source {about['revision']}")
    return machine, ", ".join(versions)


def _second(item: tuple[str, float]) -> float:
    return item[1]
