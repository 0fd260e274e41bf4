"""What stands in the folder of a run, read and written; `run.py` says which files there are."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from matmix.experiments.checkpoint import write_file
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.task import Task, build


@dataclasses.dataclass(frozen=True)
class Result:
    """What `result.json` holds. Scores are empty where the run did not get there."""

    status: str
    """"finished", "diverged" (a loss that is not finite), "failed" (an exception) or "interrupted"."""
    step: int
    config: dict[str, Any]
    command: str
    """The command that was run, and `reproduce`: the one that repeats this run alone."""
    reproduce: str
    val: dict[str, float] = dataclasses.field(default_factory=dict)
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    metric: str = ""
    higher_is_better: bool = True
    best_step: int | None = None
    """The step whose weights scored best on validation; `val` and `test` are theirs."""
    baselines: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one forward of one example, and the FFT operations beside them."""
    fft_flops: int | None = None
    step_seconds: float | None = None
    """Median over logging windows of the mean time of a training step, the first window left out."""
    samples_per_second: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    """Weights, optimiser state and the most that is alive in one training step: measured on CUDA by the allocator,
    on CPU by the profiler. `max_rss_bytes` is the process, imports and earlier runs included."""
    max_rss_bytes: int | None = None
    error: str | None = None
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result in a run folder, or None when there is none (yet)."""
        try:
            return build(cls, json.loads((Path(folder) / "result.json").read_bytes()))
        except FileNotFoundError:
            return None

    @property
    def done(self) -> bool:
        """True where another start would change nothing."""
        return self.status in ("finished", "diverged")


def load_model(folder: Path, weights: str = "best") -> tuple[Task, nn.Module]:
    """Task and trained model of a finished run; `weights` is "best" (on validation) or "final"."""
    from safetensors.torch import load_file

    config = read_config(folder)
    task = config.make_task()
    model = task.model(config.mixer, config.seed)
    model.load_state_dict(load_file(Path(folder) / f"{weights}.safetensors"))
    return task, model.eval()


def read_config(folder: Path) -> RunConfig:
    """The configuration that a run folder was made for."""
    return RunConfig.from_json(json.loads((Path(folder) / "config.json").read_bytes()))


def write_json(path: Path, data: Any) -> None:
    write_file(path, (json.dumps(data, indent=1) + "\n").encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a torn last line (a run that was killed) is left out."""
    lines = []
    with open(Path(folder) / "metrics.jsonl", encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            lines.append(json.loads(line))
    return lines


def last_logged_step(folder: Path) -> int:
    try:
        return max((line["step"] for line in read_metrics(folder)), default=0)
    except FileNotFoundError:
        return 0


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. The kernel drops the lock when the process ends, however it ends."""
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunError(f"{folder} is in use by {file.read().strip() or 'another process'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


assert sys.platform != "win32", "run folders are locked with flock, which Windows does not have"
