"""What one run shows while it runs: a bar with loss, metrics, samples per second and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matmix.experiments.text import shown

Progress = Callable[[dict[str, Any]], None]
"""Called with `step`, `steps`, `loss`, `samples_per_second`, `seconds_left` and the newest validation metric."""
_HIDDEN = ("step", "steps", "samples_per_second", "seconds_left")


@contextmanager
def watch(title: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """Yield the function that a run calls with its news. On a terminal it draws a bar; elsewhere it prints a line
    for every tenth of the run."""
    if quiet:
        yield None
        return
    if sys.stdout is None or not sys.stdout.isatty():
        yield _lines(title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
    with Bar(*columns, TextColumn("{task.fields[news]}", markup=False), refresh_per_second=4) as bar:
        row = bar.add_task(shown(title), total=None, news="starting")
        yield lambda news: bar.update(row, total=news["steps"], completed=news["step"], news=describe(news))


def describe(news: dict[str, Any]) -> str:
    """News of a run in one line."""
    words = [f"{name} {value:.4g}" for name, value in news.items() if name not in _HIDDEN]
    if news.get("samples_per_second"):
        words.append(f"{news['samples_per_second']:.0f} samples/s")
        left = news["seconds_left"]
        words.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return ", ".join(words)


def _lines(title: str) -> Progress:
    printed = -1

    def tell(news: dict[str, Any]) -> None:
        nonlocal printed
        tenth = 10 * news["step"] // news["steps"]
        if tenth > printed:
            printed = tenth
            print(f"{shown(title)} {news['step']}/{news['steps']}: {describe(news)}", flush=True)

    return tell
