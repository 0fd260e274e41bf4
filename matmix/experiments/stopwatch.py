"""How long the steps of a run take."""

from __future__ import annotations

import statistics
import time


class Stopwatch:
    """Mean seconds of a step in each window between two lines of the log; evaluations and checkpoints are left out.

    Args:
        windows: those of the part of the run before this start.
        before: its seconds.
    """

    def __init__(self, windows: list[float] | None = None, before: float = 0.0) -> None:
        self.windows = windows or []
        self._before, self._began = before, time.perf_counter()
        self.start()

    def start(self) -> None:
        """Begin a window here."""
        self._since, self._steps = time.perf_counter(), 0

    def tick(self) -> None:
        """A step is done."""
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        self._since += seconds

    def window(self, whole: int) -> None:
        """End a window; one of fewer than `whole` steps (after a new start, at the end) is not counted."""
        now = time.perf_counter()
        if self._steps == whole:
            self.windows.append((now - self._since) / whole)
        self._since, self._steps = now, 0  # what logging takes belongs to the next window

    @property
    def typical(self) -> float | None:
        """Median seconds of a step; the first window pays for warming up."""
        return statistics.median(self.windows[1:] or self.windows) if self.windows else None

    @property
    def seconds(self) -> float:
        """Since the beginning of the run, evaluations and checkpoints included."""
        return self._before + time.perf_counter() - self._began
