"""Workers of a study as jobs of Slurm, by submitit.

Workers are submitted, not runs: each takes what is free until all is done (see `lease.py`), so a cluster sees a handful
of jobs, whatever the size of the study. Where the scheduler says that a job's time is over, or takes its place for
another one, the worker saves and stops, and submitit puts it into the queue again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matmix.experiments.extras import require


class Worker:
    """A command in a process of its own, which hears of the end of its time as of Ctrl-C."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.words, self.folder = tuple(words), folder
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.words, cwd=self.folder)
        threading.Thread(target=self._wait, daemon=True).start()
        return self._ended()

    def checkpoint(self) -> Any:
        """What submitit calls when the scheduler wants the place: stop the process, and begin again later."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self._ended()
        return DelayedSubmission(Worker(self.words, self.folder))

    def _wait(self) -> None:
        assert self.process is not None
        self.status = self.process.wait()

    def _ended(self) -> int:
        # No lock of Popen's or of a thread: submitit calls checkpoint() from a signal that interrupts __call__ here.
        while self.status is None:
            time.sleep(0.2)
        return self.status


def submit(
    words: Sequence[str], workers: int, logs: Path, settings: Sequence[str], cluster: str = "slurm"
) -> list[Any]:
    """Submit so many workers that each run the command, in this folder, and return their jobs.

    Args:
        words: the command, which ends when all runs are done.
        workers: how many.
        logs: where submitit writes what each printed.
        settings: "NAME=VALUE" as submitit knows them: "slurm_partition=gpu", "timeout_min=600", "gpus_per_node=1".
        cluster: "slurm", or "local" for processes of this machine.

    Raises:
        ValueError: without submitit or Slurm, for fewer than one worker, or a setting that submitit does not know.
    """
    require("submitit")
    import submitit

    if workers < 1:
        raise ValueError(f"slurm must be a number of workers of at least 1, got slurm={workers}")
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals and value):
            raise ValueError(f"slurm_settings must be NAME=VALUE, such as timeout_min=600, got {setting!r}")
        number = int(value) if value.isdecimal() else value
        parsed[name] = float(value) if name == "mem_gb" and value.replace(".", "", 1).isdecimal() else number
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"slurm: {error}") from None
    try:
        executor.update_parameters(name="matmix", **parsed)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"slurm_settings: {str(error).partition(chr(10))[0]}") from None
    worker = Worker(words, Path(os.getcwd()))
    with executor.batch():
        return [executor.submit(worker) for _ in range(workers)]
