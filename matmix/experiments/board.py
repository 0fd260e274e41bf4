"""What a running study shows: one line for all, one for each run that is under way."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from matmix.experiments.output import steady
from matmix.experiments.text import shown

if TYPE_CHECKING:
    from rich.console import Console

    from matmix.experiments.study import StudyRun


class Board:
    """Progress of a study on a terminal; elsewhere (a log file) a line for each run that ends.

    Args:
        pending: the runs to do, in order.
        total: the number of all runs, those that were finished before included.
        jobs: how many run at once, for the time that is left.
        quiet: show nothing.
    """

    def __init__(self, pending: Sequence[StudyRun], total: int, jobs: int, *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console: Console = Console(quiet=quiet)
        self.total, self.jobs = total, jobs
        self.waiting = list(pending)
        self.bad = 0
        self.began: dict[str, float] = {}
        self.left: dict[str, float] = {}  # seconds left of a running run, as it says itself
        self.seconds: dict[str, list[float]] = defaultdict(list)  # of the ended runs, by setting
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal or quiet,
        )
        self.all = self.progress.add_task("study", total=total, completed=total - len(pending), text="")
        self.rows: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        with steady():
            self.console.print(shown(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def start(self, run: StudyRun) -> None:
        self.began[run.folder] = time.monotonic()
        if run in self.waiting:  # not where a cluster begins it again
            self.waiting.remove(run)
        self.rows[run.folder] = self.progress.add_task(
            shown(name(run)), total=run.config.recipe["steps"], text="starting"
        )
        self._refresh()

    def update(self, run: StudyRun, news: dict[str, Any]) -> None:
        if news.get("seconds_left") is not None:
            self.left[run.folder] = news["seconds_left"]
        words = [f"{key} {value:.4g}" for key, value in news.items() if key not in _QUIET and _is_number(value)]
        if _is_number(news.get("samples_per_second")):
            words.append(f"{news['samples_per_second']:.0f}/s")
        self.progress.update(self.rows[run.folder], completed=news.get("step", 0), text=", ".join(words))
        self._refresh()

    def end(self, run: StudyRun, status: str, text: str) -> None:
        """Note a run that ended: its status, and its score or error in a line."""
        seconds = time.monotonic() - self.began.pop(run.folder)
        self.left.pop(run.folder, None)
        self.progress.remove_task(self.rows.pop(run.folder))
        if status == "finished":
            self.seconds[run.setting].append(seconds)
        self.bad += status not in ("finished", "interrupted")
        self.progress.advance(self.all, status not in ("interrupted", "refused"))
        done = int(self.progress.tasks[0].completed)
        self.say(f"[{done}/{self.total}] {name(run)}: {status}{', ' if text else ''}{text} ({seconds:.1f} s)")
        self._refresh()

    def seconds_left(self) -> float | None:
        """What the running runs say, and the mean time of ended ones for the rest; None while either is unknown."""
        if any(folder not in self.left for folder in self.began) or any(
            run.setting not in self.seconds for run in self.waiting
        ):
            return None
        means = {setting: sum(times) / len(times) for setting, times in self.seconds.items()}
        rest = sum(self.left.values()) + sum(means[run.setting] for run in self.waiting)
        return max([rest / self.jobs, *self.left.values()])

    def _refresh(self) -> None:
        left = self.seconds_left()
        words = [f"{int(self.progress.tasks[0].completed)}/{self.total} runs", f"{len(self.began)} running"]
        if self.bad:
            words.append(f"{self.bad} failed or diverged")
        words.append("" if left is None else f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        self.progress.update(self.all, text=", ".join(filter(None, words)))


_QUIET = ("step", "steps", "seconds_left", "samples_per_second")


def name(run: StudyRun) -> str:
    return " ".join(filter(None, (run.setting, run.mixer, run.trial, f"seed {run.seed}")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
