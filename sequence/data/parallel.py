"""Long work in several processes, with a bar, in bounded memory, and clean after Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

Advance = Callable[[float], None]
"""Called with how much more is done."""


def workers() -> int:
    """Processes beside this one: the cores (8 at most), or MATMIX_WORKERS; never part of a result."""
    given = os.environ.get("MATMIX_WORKERS")
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, cores)
    if not given.isdigit():
        raise ValueError(f"MATMIX_WORKERS must be a number of processes, 0 for none, got {given!r}")
    return int(given)


def ordered_map(function: Callable[[T], R], items: Iterable[T], ahead: int = 3) -> Iterator[R]:
    """`map(function, items)` in worker processes: in order, and with at most `ahead` items a worker on their way, so
    that neither a long input nor a slow reader fills the memory. With one worker or none, in this process.

    An end before the last item (an error, Ctrl-C, a reader that stops) leaves no process behind.
    """
    count = workers()
    if count < 2:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(_start_method()), initializer=_as_worker)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Neighbours together: what one worker gets at once."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@contextmanager
def progress(title: str, total: float, unit: str = "") -> Iterator[Advance]:
    """A bar on a terminal; elsewhere a line a tenth, of work that takes longer than ten seconds. On stderr."""
    if not sys.stderr.isatty():
        yield _lines(title, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), refresh_per_second=4) as bar:
        row = bar.add_task(title, total=total)
        yield lambda more: bar.advance(row, more)


def _lines(title: str, total: float, unit: str) -> Advance:
    begun, done, told = time.monotonic(), 0.0, 0

    def advance(more: float) -> None:
        nonlocal done, told
        done += more
        tenth = int(10 * done / total) if total else 10
        if tenth > told and time.monotonic() - begun > 10:
            told = tenth
            print(f"{title}: {done:,.0f} of {total:,.0f} {unit}".rstrip(), file=sys.stderr, flush=True)

    return advance


def _start_method() -> str:
    """Forked where that is sound: what runs in the workers is Python and numpy alone, and a script that has no
    `if __name__ == "__main__"` works."""
    return "fork" if sys.platform == "linux" else "spawn"


def _as_worker() -> None:
    """Ctrl-C reaches every process of a terminal, and the parent ends its workers; without a parent they end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
