"""What stands in the folder of a run, read and written; `run.py` says which files there are."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from matmix.experiments.checkpoint import write_file
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.task import Task, build

DONE = ("finished", "diverged")
"""What a run ends as that another start would not change."""


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
    tests: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Scores of the same weights on the further splits of `Task.tests()`; empty for one that the model cannot take."""
    ablations: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Test scores of the same weights with all matrices changed, or the inputs (see `Surgery.ablate`)."""
    metric: str = ""
    higher_is_better: bool = True
    best_step: int | None = None
    """The step whose weights scored best on validation; `val` and `test` are theirs."""
    baselines: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    published: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    solved_above: float | None = None
    """As `Task.solved_above` says."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a reader must know about this run beside its settings, in sentences."""
    groups: tuple[dict[str, float], ...] = ()
    """Parameters by learning rate and weight decay: how many tensors and numbers had which."""
    parameters: int | None = None
    dead_parameters: int | None = None
    """Of these: no gradient reaches them from the outputs of a batch of validation (see `surgery.dead_parameters`)."""
    macs: int | None = None
    """Multiply-accumulates of one forward of one example, and the FFT operations beside them."""
    fft_flops: int | None = None
    state_bytes: int | None = None
    """What the mixers keep of one example to go on token by token; None where one of them is not recurrent."""
    tokens: int | None = None
    """Tokens of that example, where all mixers see the same number."""
    step_seconds: float | None = None
    """Median over logging windows of the mean time of a training step, the first window left out."""
    samples_per_second: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    """The most that one training step has alive: weights, gradients, optimiser state, activations (see `memory.py`).
    `max_rss_bytes` is the process, imports and earlier runs included; None where the system does not say."""
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
        return self.status in DONE


def load_model(folder: Path, weights: str = "best") -> tuple[Task, nn.Module]:
    """Task and trained model of a finished run; `weights` is "best" (on validation) or "final"."""
    from safetensors.torch import load_file

    config = read_config(folder)
    task = config.make_task()
    model = config.make_model(task, begun=True)
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
    """Hold a run folder for this process. The system drops the lock when the process ends, however it ends."""
    held, holder = FileLock(folder / ".lock"), folder / ".holder"
    try:
        held.acquire(timeout=0)
    except Timeout:
        try:
            who = holder.read_text(encoding="utf-8")
        except FileNotFoundError:
            who = "another process"
        raise RunError(f"{folder} is in use by {who}") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def differences(theirs: dict[str, Any], mine: dict[str, Any], path: str = "") -> Iterator[str]:
    """What tells the configuration of a folder from another one, in words."""
    for key in sorted(theirs.keys() | mine.keys()):
        old, new = theirs.get(key), mine.get(key)
        if (path == "recipe." or (not path and key in ("threads", "plugins"))) and key not in theirs:
            yield f"it was made by an older version, which did not record its {path}{key}"
        elif isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} is {old!r} there and {new!r} here"
