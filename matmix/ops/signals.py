"""Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) as wishes: a training grants them between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

HANG_UP = int(getattr(signal, "SIGHUP", 0))
"""0 where the system has none."""
_outer: Callable[[int], None] | None = None


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that is true once SIGINT, SIGTERM or SIGHUP came; a second SIGINT or SIGTERM interrupts at once.
    (The end of a terminal may send more than one SIGHUP.)"""
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        _note(number)
        if asked and number != HANG_UP:
            raise KeyboardInterrupt
        asked = True

    with _handled(handler, also_ignored=(signal.SIGINT,)):  # the background of a shell ignores it
        yield lambda: asked


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. Yields the signals that came, in order, those that an
    `interruptible` within has heard too."""
    global _outer
    heard: list[int] = []

    def handler(number: int, frame: Any) -> None:
        _note(number)
        if number != HANG_UP or heard.count(HANG_UP) == 1:
            raise KeyboardInterrupt

    before = _outer

    def note(number: int) -> None:
        heard.append(number)
        if before is not None:
            before(number)

    _outer = note
    try:
        with _handled(handler):
            yield heard
    finally:
        _outer = before


def _note(number: int) -> None:
    if _outer is not None:
        _outer(number)


@contextmanager
def _handled(handler: Callable[[int, Any], None], also_ignored: Iterable[int] = ()) -> Iterator[None]:
    """A handler for the signals that ask to stop. One that is ignored (SIGHUP by `nohup`) stays so, but `also_ignored`.
    Other threads than the main one can have none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asking = (int(signal.SIGINT), int(signal.SIGTERM), *([HANG_UP] if HANG_UP else []))
    numbers = [one for one in asking if one in also_ignored or signal.getsignal(one) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
