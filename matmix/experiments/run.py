"""A run is a folder. It can be killed at any moment, started again, read by anyone, and is never done twice.

config.json      task, settings, mixer, seed, recipe, threads, contents of plugins: all that decides the result
environment.json versions, machine, command
metrics.jsonl    one line a logged step; no clock in it, so a resumed run writes the same bytes
checkpoints/     see `checkpoint.py`; removed when the run is finished
final.safetensors, best.safetensors    weights after the last step, and those that scored best on validation
test_examples.npz    the score of each test example, where the task has one; `blocks.py` reads it
result.json      status, scores, costs; `error.txt` holds the traceback of a failed run
"""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from matmix.experiments import trainer
from matmix.experiments.checkpoint import write_file
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.environment import environment, is_main_process
from matmix.experiments.files import read_json
from matmix.experiments.folder import (
    CONFIG,
    CONFIG_KEYS,
    InUse,
    Result,
    differences,
    last_logged_step,
    load_model,
    lock,
    read_config,
    read_metrics,
    write_json,
)
from matmix.experiments.lease import holder
from matmix.experiments.output import complain
from matmix.experiments.progress import Progress
from matmix.experiments.trainer import Diverged

__all__ = [
    "Progress",
    "Result",
    "RunConfig",
    "RunError",
    "execute",
    "load_model",
    "lock",
    "read_config",
    "read_metrics",
]


def execute(
    config: RunConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    track: str = "",
    held: bool = False,
) -> Result:
    """Do one whole run in `folder`: lock, resume, train, evaluate, write `result.json`.

    A finished or diverged run is read, not repeated. A run that raises gets status "failed" and its traceback in
    `error.txt`; the next call goes on from its last checkpoint. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    `resume=False` drops the checkpoints of an unfinished run and starts at step 0. `track` names one of accelerate's
    trackers, which is told what the log says ("tensorboard": in `folder/tensorboard`); it changes no result. `held`
    says that this process holds the folder by a lease (see `lease.py`), so it is not locked.

    Raises `RunError` when another process holds the folder, when it belongs to another configuration, or when a plugin
    is not the one that the run is made for; `Damaged` when its configuration or result cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main = is_main_process()
    with lock(folder) if main and not held else nullcontext():
        if not held and (who := holder(folder)):
            raise InUse(f"{folder} is in use by {who}")
        _claim(folder, config, main)
        done = Result.read(folder)
        if done is not None and done.done:
            return done
        config.check_plugins()
        if not resume and main:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        with _threads(config.threads):
            result = _train(config, folder, main, lambda: trainer.fit(config, folder, progress, track))
        return _finish(folder, result, main)


def _train(config: RunConfig, folder: Path, main: bool, fit: Callable[[], dict[str, Any]]) -> Result:
    """What came of the training, whatever came of it."""
    about = environment()
    base: dict[str, Any] = {
        "config": config.to_json(),
        "command": about["command"],
        "reproduce": config.command(folder),
        "environment": about,
    }
    if main:
        write_json(folder / "environment.json", about)
        (folder / "error.txt").unlink(missing_ok=True)
    try:
        return Result(status="finished", **base, **fit())
    except Diverged as event:
        return Result(status="diverged", step=event.step, error=str(event), **base)
    except KeyboardInterrupt as event:
        step = event.args[0] if event.args else 0
        _finish(folder, Result(status="interrupted", step=step, **base), main)
        raise
    except (Exception, SystemExit) as error:  # foreign code may call for the end of the process: it ends its run
        if main:
            _keep(folder / "error.txt", traceback.format_exc())
        message = f"{type(error).__name__}: {error}"
        return Result(status="failed", step=last_logged_step(folder), error=message, **base)


def _keep(path: Path, text: str) -> None:
    """Write a traceback; where that cannot be, on a full disk, say it."""
    try:
        write_file(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        complain(f"{path} cannot be written ({error}): {text}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _claim(folder: Path, config: RunConfig, main: bool) -> None:
    """Write the configuration, or check that it is the one the folder was made for."""
    path = folder / "config.json"
    mine = config.to_json()
    if path.exists():
        theirs = read_json(path, CONFIG, CONFIG_KEYS)
        if theirs != mine:
            changed = ", ".join(differences(theirs, mine))
            raise RunError(f"{folder} holds another run: {changed}. Take another folder, or remove that one.")
    elif main:
        write_json(path, mine)


def _finish(folder: Path, result: Result, main: bool) -> Result:
    """Write the result. One that the disk does not take is that of a failed run, which goes on from its checkpoint."""
    if not main:
        return result
    try:
        write_json(folder / "result.json", dataclasses.asdict(result))
    except OSError as error:
        what = f"{folder / 'result.json'} cannot be written: {error}"
        complain(what)
        return dataclasses.replace(result, status="failed", error=what) if result.done else result
    if result.done:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result
