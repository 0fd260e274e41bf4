"""What stands in the folder of a run, read and written; `run.py` says which files there are."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from matmix.experiments.checkpoint import write_file
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.files import Damaged, Keys, read_json, read_lines, record, shaped
from matmix.experiments.task import Task

DONE = ("finished", "diverged")
"""What a run ends as that another start would not change."""
STATUSES = (*DONE, "failed", "interrupted")
RESULT, CONFIG, LINE = "the result of a run", "the configuration of a run", "a line of a run's log"
CONFIG_KEYS: Keys = {
    "task": str, "mixer": str, "seed": int, "options": dict[str, Any], "recipe": dict[str, Any],
}  # fmt: skip
LINE_KEYS: Keys = {"step": int, "split": str}
_MACHINE: Keys = {"gpu": list[str], "versions": dict[str, str]}


class InUse(RunError):
    """Another process holds the folder."""


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
        """The result in a run folder, or None when there is none (yet).

        Raises:
            Damaged: if the file is not a result.
        """
        path = Path(folder) / "result.json"
        try:
            return cls.of(read_json(path, RESULT), path)
        except FileNotFoundError:
            return None

    @classmethod
    def of(cls, data: Any, path: Path) -> Result:
        """A result from the JSON in a file.

        Raises:
            Damaged: if it is none.
        """
        result = record(cls, data, path, RESULT)
        shaped(result.config, CONFIG_KEYS, path, f"{RESULT} with its configuration")
        machine = {name: hint for name, hint in _MACHINE.items() if name in result.environment}
        shaped(result.environment, machine, path, f"{RESULT} with its environment")
        if result.status not in STATUSES:
            raise Damaged(path, RESULT, f"its 'status' must be one of {', '.join(STATUSES)}, got {result.status!r}")
        return result

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
    """The configuration that a run folder was made for.

    Raises:
        Damaged: if its `config.json` is not the configuration of a run.
    """
    return RunConfig.from_json(read_json(Path(folder) / "config.json", CONFIG, CONFIG_KEYS))


def repair(folder: Path) -> str:
    """What to do about a run with a damaged file, in a sentence."""
    return f"Remove {folder}, and the command that made it makes it anew."


def write_json(path: Path, data: Any) -> None:
    write_file(path, (json.dumps(data, indent=1) + "\n").encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a torn last line (a run that was killed) is left out.

    Raises:
        Damaged: if another line is none of a log.
    """
    return read_lines(Path(folder) / "metrics.jsonl", LINE, LINE_KEYS)


def last_logged_step(folder: Path) -> int:
    try:
        return max((line["step"] for line in read_metrics(folder)), default=0)
    except (FileNotFoundError, Damaged):
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
        except (OSError, ValueError):
            who = "another process"
        raise InUse(f"{folder} is in use by {who}") from None
    try:
        with suppress(OSError):  # a full disk takes an empty lock file, and no line
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
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
