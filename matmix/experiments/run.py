"""A run is a folder. It can be killed at any moment, started again, read by anyone, and is never done twice.

config.json      task, settings, mixer, seed, recipe: all that decides the result
environment.json versions, machine, command
metrics.jsonl    one line a logged step; no clock in it, so a resumed run writes the same bytes
checkpoints/     see `checkpoint.py`; removed when the run is finished
final.safetensors, best.safetensors    weights after the last step, and those that scored best on validation
result.json      status, scores, costs; `error.txt` holds the traceback of a failed run
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from matmix.experiments.checkpoint import write_file
from matmix.experiments.environment import environment, is_main_process
from matmix.experiments.plugins import IMPORTED
from matmix.experiments.task import Recipe, Task, build, task_class

Progress = Callable[[dict[str, Any]], None]
"""Called with `step`, `steps`, `loss`, `samples_per_second`, `seconds_left` and the newest validation metric."""


class RunError(RuntimeError):
    """The run folder cannot be used: locked by another process, or made by another configuration."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run. `options` and `recipe` may name some settings only: the defaults
    of the task are filled in at once, so a stored configuration never depends on what the defaults are later."""

    task: str
    mixer: str
    seed: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        task = build(task_class(self.task), self.options)
        recipe = build(Recipe, {**dataclasses.asdict(task.recipe()), **self.recipe})
        object.__setattr__(self, "options", _jsonable(dataclasses.asdict(task)))  # type: ignore[call-overload]
        object.__setattr__(self, "recipe", _jsonable(dataclasses.asdict(recipe)))

    def make_task(self) -> Task:
        return build(task_class(self.task), self.options)

    def make_recipe(self) -> Recipe:
        return build(Recipe, self.recipe)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        return build(cls, data)

    @property
    def key(self) -> str:
        """Twelve hex digits that identify the run."""
        return hashlib.sha256(_dump(self.to_json())).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash(self.key)

    def command(self, folder: Path | str, imports: Iterable[str] = ()) -> str:
        """The shell command that repeats this run, naming only what differs from the defaults, after these imports."""
        bare = RunConfig(self.task, self.mixer, self.seed)
        words = ["matmix", "train", self.task, *(("--mixer", self.mixer) if self.mixer else ())]
        words += ["--seed", str(self.seed)]
        same_task = RunConfig(self.task, self.mixer, self.seed, self.options)
        for group, mine, default in (
            ("task", self.options, bare.options),
            ("recipe", self.recipe, same_task.recipe),
        ):
            for name in (name for name in mine if mine[name] != default[name]):
                words += _flag(f"{group}.{name}", mine[name])
        words += [word for source in imports for word in ("--import", source)]
        return shlex.join([*words, "--out", str(folder)])


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


def execute(config: RunConfig, folder: Path, *, progress: Progress | None = None, resume: bool = True) -> Result:
    """Do one whole run in `folder`: lock, resume, train, evaluate, write `result.json`.

    A finished or diverged run is read, not repeated. A run that raises gets status "failed" and its traceback in
    `error.txt`; the next call goes on from its last checkpoint. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    `resume=False` drops the checkpoints of an unfinished run and starts at step 0.

    Raises `RunError` when another process holds the folder or when it belongs to another configuration.
    """
    from matmix.experiments.trainer import Diverged, fit

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main = is_main_process()
    with lock(folder) if main else _nothing():
        _claim(folder, config, main)
        done = Result.read(folder)
        if done is not None and done.done:
            return done
        if not resume and main:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        about = environment()
        base: dict[str, Any] = {
            "config": config.to_json(),
            "command": about["command"],
            "reproduce": config.command(folder, IMPORTED),
            "environment": about,
        }
        if main:
            write_json(folder / "environment.json", about)
            (folder / "error.txt").unlink(missing_ok=True)
        try:
            result = Result(status="finished", **base, **fit(config, folder, progress))
        except Diverged as event:
            result = Result(status="diverged", step=event.step, error=str(event), **base)
        except KeyboardInterrupt as event:
            step = event.args[0] if event.args else 0
            _finish(folder, Result(status="interrupted", step=step, **base), main)
            raise
        except Exception as error:
            if main:
                write_file(folder / "error.txt", traceback.format_exc().encode())
            message = f"{type(error).__name__}: {error}"
            result = Result(status="failed", step=last_logged_step(folder), error=message, **base)
        _finish(folder, result, main)
        return result


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


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _claim(folder: Path, config: RunConfig, main: bool) -> None:
    """Write the configuration, or check that it is the one the folder was made for."""
    path = folder / "config.json"
    mine = config.to_json()
    if path.exists():
        theirs = json.loads(path.read_bytes())
        if theirs != mine:
            changed = ", ".join(_differences(theirs, mine))
            raise RunError(f"{folder} holds another run: {changed}. Take another folder, or remove that one.")
    elif main:
        write_json(path, mine)


def _differences(theirs: dict[str, Any], mine: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(theirs.keys() | mine.keys()):
        old, new = theirs.get(key), mine.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} is {old!r} there and {new!r} here"


def _finish(folder: Path, result: Result, main: bool) -> None:
    if not main:
        return
    write_json(folder / "result.json", dataclasses.asdict(result))
    if result.done:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _flag(name: str, value: Any) -> list[str]:
    """One setting as a command-line option."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        head, _, tail = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}.no-{tail}"]
    return [f"--{name}", *(str(part) for part in (value if isinstance(value, list) else [value]))]


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


assert sys.platform != "win32", "run folders are locked with flock, which Windows does not have"
