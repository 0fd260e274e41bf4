"""Run a study: what is not finished, here, in worker processes, or on a Ray cluster.

OUT/study.json     the grid
OUT/runs/TASK/MIXER/seed-N/    one run each, see `run.py`; in MIXER/TRIAL/seed-N/ where the study tunes
OUT/sessions/      command, machine and duration of every start of the study
OUT/report/        see `report/`
OUT/index.jsonl    what stands in the runs, made anew where it is lost; see `index.py`
"""

from __future__ import annotations

import _thread
import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from matmix.checksums import sum_of
from matmix.experiments.board import Board, name
from matmix.experiments.checkpoint import remove_checkpoints, write_file
from matmix.experiments.cluster import Cluster, require_ray, run_on_ray
from matmix.experiments.config import RunError
from matmix.experiments.environment import environment
from matmix.experiments.folder import (
    DONE,
    Result,
    claim_run,
    differences,
    json_bytes,
    last_logged_step,
    repair,
    write_json,
)
from matmix.experiments.index import Entry, Index
from matmix.experiments.manifest import sealed
from matmix.experiments.output import steady
from matmix.experiments.plugins import import_all
from matmix.experiments.step import check_tracker
from matmix.experiments.study import Study, StudyRun, is_study_folder
from matmix.experiments.workers import run_in_workers, run_one, run_what_is_free
from matmix.files import Damaged
from matmix.folders import check_ours, claim, mark, marker, sweep
from matmix.ops.signals import stoppable


@dataclass(frozen=True)
class Outcome:
    """How the runs of a study stand: their status by name, the refused and missing ones included."""

    folder: Path
    status: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    """Of the runs that failed, were refused or have a damaged file: what was said, by name."""
    problems: tuple[str, ...] = ()
    """What could not be written beside the runs: the plan, the notes on this start."""

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(self.status.values()))

    @property
    def complete(self) -> bool:
        """Whether no run would be started again. Diverged runs count: they would diverge again."""
        return all(status in DONE for status in self.status.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))


def run_study(
    study: Study,
    out: Path | str,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    ray: bool | Cluster = False,
    worker: bool = False,
    minutes: float = 0.0,
    track: str = "",
    quiet: bool = False,
) -> Outcome:
    """Do all runs of a study that are not finished. Failed ones are tried again, from their last checkpoint.

    A run that fails, diverges or takes its process down is recorded, and the study goes on. One with a damaged file is
    "damaged" and left alone: where its folder is removed, the same call makes it anew. Ctrl-C (or SIGTERM, or the end
    of the terminal) stops cleanly: running runs save a checkpoint, and the same call goes on with them.

    Args:
        study: the grid.
        out: its folder. One that holds a study may get more mixers, seeds or tasks.
        jobs: how many runs at once; 1 runs them in this process, more in as many new ones. None: one for each core
            (8 at most), or one where there is a GPU.
        threads: torch's threads in each run; None: those of the study. They are part of what a run is: its last digits
            may depend on them, but never on ``jobs``.
        ray: spread the runs over a Ray cluster instead: the one that ``RAY_ADDRESS`` names or a new one here (True), or
            as a ``cluster.Cluster`` says.
        worker: be one of any number of processes, on any machines that share the folder, which take what is free, one
            run at a time; it ends when all runs are done. Others than workers must not be at work on the study.
        minutes: stop after so many minutes, as Ctrl-C does, and return how far the study is; 0 = when all is done.
        track: a tracker of accelerate that each run tells what it logs; ``"tensorboard"`` writes in its folder.
        quiet: print nothing.

    Raises:
        ValueError: before anything runs: for a mixer or task that cannot be built, a folder that is not ours (see
            `matmix.folders`) or holds runs of other settings; or if Ray is asked for and absent.
        KeyboardInterrupt: after a clean stop.
    """
    out = Path(out)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got jobs={jobs}")
    if not minutes >= 0:
        raise ValueError(f"minutes must be a time, or 0 for no limit, got minutes={minutes}")
    study = study if threads is None else dataclasses.replace(study, threads=threads)
    if worker and (ray or (jobs or 1) > 1):
        raise ValueError(f"a worker does one run at a time, got worker=True with ray={bool(ray)}, jobs={jobs}")
    jobs = 1 if worker else jobs
    if ray:
        require_ray()
    if track:
        check_tracker(track)
    import_all(study.imports)
    check_ours(out, "study", is_study_folder)
    index = Index(out)
    try:
        runs = study.runs()
    except Exception:  # of a task or a mixer, which may be foreign code
        study.check()  # which says everything that is wrong with it
        raise
    there = {run.folder: index[run.folder] for run in runs}  # each look is four of the system's
    _check_folder(out, there, runs)
    pending = [run for run in runs if there[run.folder].status not in (*DONE, "damaged")]
    study.check((run.setting, run.mixer) for run in pending)
    jobs = min(jobs or _default_jobs(study.threads), max(1, len(pending)))
    claim(out, "study", is_study_folder)
    for folder in (out, out / "sessions"):
        sweep(folder)
    for run in runs:  # a process may be killed between its result and this
        checkpoints = out / run.folder / "checkpoints"
        if there[run.folder].status in DONE and checkpoints.is_dir():
            remove_checkpoints(checkpoints)
    problems: list[str] = []
    with _noted(problems, "the plan of the study cannot be written"):
        plan = json_bytes(study.to_json())
        write_file(out / "study.json", plan)
        if (marker(out) or {}).get("study") != sum_of(plan):
            mark(out, "study", study=sum_of(plan))
    index.save()

    ended: dict[str, tuple[str, str]] = {}
    board = Board(pending, len(runs), jobs, quiet=quiet)

    def tell(run: StudyRun, kind: str, content: Any) -> None:
        if kind == "start":
            board.start(run)
        elif kind == "progress":
            board.update(run, content)
        else:
            if kind == "died":
                with suppress(OSError, RunError, Damaged):  # it stands in the outcome, too
                    _record_death(run, out / run.folder, content)
            ended[name(run)] = ("failed", content) if kind == "died" else content
            board.end(run, *ended[name(run)])

    work = [(run, out / run.folder) for run in pending]
    if pending:
        how = "Ray" if ray else f"{jobs} process{'es' * (jobs > 1)}"
        board.say(f"study {study.name}: {len(pending)} of {len(runs)} runs to do, {how}, in {out}")
    for run in runs:
        if there[run.folder].damage:
            board.say(f"{name(run)}: damaged, {there[run.folder].damage}. {repair(out / run.folder)}")
    about = {"jobs": jobs, "threads": study.threads, "ray": bool(ray), "pending": len(pending), "margin": study.margin}
    clock = Clock(minutes)
    with steady(), _session(out, about, problems), stoppable():
        try:
            with clock, board:
                if ray:
                    cluster = ray if isinstance(ray, Cluster) else Cluster()
                    run_on_ray(work, study.imports, study.threads, cluster, tell, track)
                elif worker:
                    run_what_is_free(work, tell, track)
                elif jobs > 1:
                    run_in_workers(work, study.imports, jobs, tell, track)
                else:
                    _run_here(work, tell, track)
        except KeyboardInterrupt:
            left = sum(not _done(index, run.folder) for run in runs)
            why = f"{minutes:g} minutes are over" if clock.over else "stopped"
            board.say(f"{why}; {left} of {len(runs)} runs are left. The same command goes on where this one stopped.")
            if not clock.over:
                raise
    outcome = _outcome(out, index, runs, ended, problems)
    board.say(f"study {study.name}: {outcome}")
    for problem in problems:
        board.say(problem)
    return outcome


def _outcome(
    out: Path, index: Index, runs: list[StudyRun], ended: dict[str, tuple[str, str]], problems: list[str]
) -> Outcome:
    """How the runs stand by their files, and by what was said of those that could not write any."""
    status, errors = {}, {}
    for run in runs:
        key, entry = name(run), index[run.folder]
        said, text = ended.get(key, ("", ""))
        status[key] = entry.status if entry.status in DONE or not said else said
        if status[key] in DONE:
            continue
        text = entry.damage or text or (entry.result.error if entry.result is not None else None) or ""
        if text:
            errors[key] = text
    return Outcome(out, status, errors, tuple(problems))


@contextmanager
def _noted(problems: list[str], what: str) -> Iterator[None]:
    """A file beside the runs that cannot be written costs the study nothing; it is said at the end."""
    try:
        yield
    except OSError as error:
        problems.append(f"{what}: {error}")


def _run_here(work: list[tuple[StudyRun, Path]], tell: Any, track: str) -> None:
    for run, folder in work:
        tell(run, "start", None)
        try:
            ended = run_one(run.config.to_json(), str(folder), partial(tell, run, "progress"), track)
        except KeyboardInterrupt:
            tell(run, "end", ("interrupted", ""))
            raise
        tell(run, "end", ended)


def _check_folder(out: Path, there: dict[str, Entry], runs: list[StudyRun]) -> None:
    """Refuse a folder whose runs have other settings, before the first run finds out."""
    for run in runs:
        theirs, mine = there[run.folder].config, run.config.to_json()
        if theirs is not None and theirs != mine:
            found = ", ".join(differences(theirs, mine))
            raise ValueError(
                f"{out / run.folder} holds a run with other settings than {name(run)} has now ({found}); take "
                f"another folder for this study, or remove that one"
            )


def _record_death(run: StudyRun, folder: Path, text: str) -> None:
    """The result of a run whose process could not write one. Its checkpoints stay, so another start goes on. It may
    have died before the folder was its own, and a result alone would be somebody else's to the next start."""
    claim_run(folder, run.config)
    about = environment()
    result = Result(
        status="failed",
        step=last_logged_step(folder),
        config=run.config.to_json(),
        command=about["command"],
        reproduce=run.config.command(folder),
        error=text,
        environment=about,
        key=run.config.key,
    )
    write_json(folder / "result.json", dataclasses.asdict(result))


def _done(index: Index, folder: str) -> bool:
    return index[folder].status in DONE


def _default_jobs(threads: int) -> int:
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, 8))


@contextmanager
def _session(out: Path, about: dict[str, Any], problems: list[str]) -> Iterator[None]:
    """Note what was run, on what, and for how long."""
    began, started = time.monotonic(), datetime.now(UTC)
    path = out / "sessions" / f"{started:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
    about = {**environment(), **about, "started": started.isoformat(timespec="seconds"), "ended": None}
    said = "this start of the study cannot be noted"
    with _noted(problems, said):
        path.parent.mkdir(exist_ok=True)
        write_json(path, sealed(about))
    ended = "error"
    try:
        yield
        ended = "done"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        with _noted(problems, said):
            write_json(path, sealed({**about, "ended": ended, "seconds": round(time.monotonic() - began, 1)}))


class Clock:
    """Interrupts the main thread after so many minutes, as Ctrl-C does; 0 never does."""

    def __init__(self, minutes: float) -> None:
        self.over = False
        self._timer = threading.Timer(60 * minutes, self._ring) if minutes else None
        if self._timer is not None:
            self._timer.daemon = True

    def _ring(self) -> None:
        self.over = True
        # SIGTERM, which `stoppable` and the trainer hear: SIGINT is ignored where a shell runs this in the background.
        _thread.interrupt_main(signal.SIGTERM)

    def __enter__(self) -> None:
        if self._timer is not None:
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
