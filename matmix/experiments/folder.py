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

from matmix.checksums import damages
from matmix.experiments.checkpoint import write_file
from matmix.experiments.config import UNUSED, RunConfig, RunError
from matmix.experiments.manifest import check_file, read_manifest
from matmix.experiments.plugins import data_only
from matmix.experiments.task import Task
from matmix.experiments.weights import read_weights
from matmix.files import Damaged, Keys, read_json, read_lines, record, shaped
from matmix.folders import MARKER, NotOurs, check_ours, mark, marker, token

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
    key: str = ""
    """`RunConfig.key`: which run this is the result of; "" in those of older versions."""

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result in a run folder, or None when there is none (yet).

        Raises:
            Damaged: if the file is not a result, not the one that the run has written, or that of another run.
        """
        path = Path(folder) / "result.json"
        try:
            result = cls.of(read_json(path, RESULT), path)
        except FileNotFoundError:
            return None
        if result.done:
            check_file(path)
        with suppress(FileNotFoundError):
            result.check_run(read_json(path.with_name("config.json"), CONFIG, CONFIG_KEYS), path)
        return result

    def check_run(self, config: dict[str, Any], path: Path) -> None:
        """Raise `Damaged` where this is the result of another run than that of this configuration."""
        if self.config != config:
            raise Damaged(path, RESULT, f"it is that of another run: {', '.join(differences(self.config, config))}")

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
    """Task and trained model of a finished run; `weights` is "best" (on validation) or "final".

    Raises:
        Damaged: for weights or a configuration that are not what the run has finished, or are those of another run.
        NotNamed: (a ValueError) for a run of code that is not imported (see `read_config`).
        RunError: for a run of code that has changed since.
    """
    path = Path(folder) / f"{weights}.safetensors"
    check_file(Path(folder) / "config.json")
    config = read_config(folder)
    state = read_weights(path, config.key)
    with data_only():
        config.check_plugins(all_here=False)
        task = config.make_task()
        model = config.make_model(task, begun=True)
    model.load_state_dict(state)
    return task, model.eval()


def read_config(folder: Path) -> RunConfig:
    """The configuration that a run folder was made for. A file or module that it names is not imported for that.

    Raises:
        Damaged: if its `config.json` is not the configuration of a run.
        NotNamed: (a ValueError) if its task is in a file or module that is not imported: import it before
            (`matmix.experiments.plugins.import_all`).
    """
    data = read_json(Path(folder) / "config.json", CONFIG, CONFIG_KEYS)
    with data_only():
        return RunConfig.from_json(data)


def repair(folder: Path) -> str:
    """What to do about a run with a damaged file, in a sentence."""
    return f"Remove {folder}, and the command that made it makes it anew."


def write_json(path: Path, data: Any) -> None:
    write_file(path, json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(data, indent=1) + "\n").encode()


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


def is_run(folder: Path) -> bool:
    """Whether a folder without a marker is that of a run all the same: it was made before there were any."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    return isinstance(config, dict) and {"task", "mixer", "seed", "options", "recipe"} <= config.keys() <= fields


def check_run(folder: Path) -> None:
    """Raise `RunError` unless a run may stand in a folder: it is ours, or free. Nothing is touched."""
    try:
        check_ours(folder, "run", is_run)
    except NotOurs as error:
        raise RunError(str(error)) from None


def claim_run(folder: Path, config: RunConfig) -> str:
    """Make the folder of a run, or take one that is free, and mark it as that of this run; its token.

    Raises:
        RunError: as `check_run`, and for a folder that holds another run.
        Damaged: for a configuration that cannot be read, or was changed.
    """
    check_run(folder)
    mine = config.to_json()
    path, known = folder / "config.json", marker(folder) or {}
    theirs = read_json(path, CONFIG, CONFIG_KEYS) if path.exists() else None
    if theirs is not None and theirs != mine:
        changed = ", ".join(differences(theirs, mine))
        if known.get("run") == config.key:
            raise Damaged(path, "what it was when the folder was made", changed)
        raise RunError(f"{folder} holds another run: {changed}. Take another folder, or remove that one.")
    if known.get("run") != config.key:
        if known.get("run"):  # all but its marker was removed: a run that is still at work there has lost its folder
            (folder / MARKER).unlink()
        folder.mkdir(parents=True, exist_ok=True)
        known = mark(folder, "run", run=config.key)
    if theirs is None:
        write_json(path, mine)
    return str(known["token"])


def check_whole(folder: Path, result: Result, only: tuple[str, ...] = ()) -> None:
    """Raise `Damaged` where a file of a run that is done is not the one that the run has written; or of these ones."""
    found = read_manifest(folder)
    if found is None and result.key:
        raise Damaged(folder / "manifest.json", "the checksums of the run", "there is none")
    for name, how in damages(folder, found[1] if found else {}, only).items():
        raise Damaged(folder / name, "the file that the run has written", how)


class FolderLost(RunError):
    """The folder of a run is not the one any more that the run has made."""


def check_held(folder: Path, mine: str) -> None:
    """Raise `FolderLost` where a folder has another token than it had: it was removed, and maybe begun anew."""
    if token(folder) != mine:
        raise FolderLost(f"{folder} was removed, or begun anew, while this run was at work in it: its end is not kept")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. The system drops the lock when the process ends, however it ends."""
    held, holder = FileLock(folder / ".lock"), folder / ".holder"
    mine = f"process {os.getpid()} on {socket.gethostname()}"
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
            holder.write_text(mine, encoding="utf-8")
        yield
    finally:
        with suppress(OSError, ValueError):  # in a folder that was removed it is that of another process, or none
            if holder.read_text(encoding="utf-8") == mine:
                holder.unlink()
        held.release()


def differences(theirs: dict[str, Any], mine: dict[str, Any], path: str = "") -> Iterator[str]:
    """What tells the configuration of a folder from another one, in words."""
    if path == "recipe.":
        theirs, mine = {**UNUSED, **theirs}, {**UNUSED, **mine}
    for key in sorted(theirs.keys() | mine.keys()):
        old, new = theirs.get(key), mine.get(key)
        if (path == "recipe." or (not path and key in ("threads", "plugins"))) and key not in theirs:
            yield f"it was made by an older version, which did not record its {path}{key}"
        elif isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} is {old!r} there and {new!r} here"
