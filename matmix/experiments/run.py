"""A run is a folder. It can be killed at any moment, started again, read by anyone, and is never done twice.

config.json      task, settings, mixer, seed, recipe, threads, contents of plugins: all that decides the result
environment.json versions, machine, command
metrics.jsonl    one line a logged step; no clock in it, so a resumed run writes the same bytes
checkpoints/     see `checkpoint.py`; removed when the run is finished
final.safetensors, best.safetensors    weights after the last step, and those that scored best on validation
test_examples.npz    the score of each test example, where the task has one; `blocks.py` reads it
manifest.json    checksums of all of these, once the run is done
result.json      status, scores, costs; `error.txt` holds the traceback of a failed run

`.matmix` says that the folder is ours and which run it holds (see `matmix.folders`). Weights, checkpoints, manifest and
result carry the key of the run too, which is compared when they are read.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from matmix.checksums import sum_of, sums
from matmix.experiments import trainer
from matmix.experiments.checkpoint import remove_checkpoints, write_file
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.environment import environment, is_main_process
from matmix.experiments.folder import (
    FolderLost,
    InUse,
    Result,
    check_held,
    check_run,
    check_whole,
    claim_run,
    json_bytes,
    last_logged_step,
    load_model,
    lock,
    read_config,
    read_metrics,
    write_json,
)
from matmix.experiments.lease import holder
from matmix.experiments.manifest import write_manifest
from matmix.experiments.output import complain
from matmix.experiments.progress import Progress
from matmix.experiments.trainer import Diverged
from matmix.folders import sweep, token

RESULT = "result.json"
FINISHED = (
    "config.json", "environment.json", "metrics.jsonl", "final.safetensors", "best.safetensors", "test_examples.npz",
)  # fmt: skip
"""What has a checksum in `manifest.json`, besides the result."""

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
    A run that is done is compared with its checksums.
    `resume=False` drops the checkpoints of an unfinished run and starts at step 0. `track` names one of accelerate's
    trackers, which is told what the log says ("tensorboard": in `folder/tensorboard`); it changes no result. `held`
    says that this process holds the folder by a lease (see `lease.py`), so it is not locked.

    Raises `RunError` when another process or thread holds the folder, when another thread of this process trains, when
    the folder was removed in the meantime (`FolderLost`), belongs to another configuration or is not ours at all (see
    `matmix.folders`), or when a plugin is not the one that the run is made for; `Damaged` when a file of the run cannot
    be read, or is not the one that the run has written.
    """
    folder = Path(folder)
    main = is_main_process()
    if main:
        check_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) if main and not held else nullcontext():
        if not held and (who := holder(folder)):
            raise InUse(f"{folder} is in use by {who}")
        if main:
            sweep(folder)
            claim_run(folder, config)
        done = Result.read(folder)
        if done is not None and done.done:
            check_whole(folder, done)
            if main:  # of a process that was killed before it came to that
                remove_checkpoints(folder / "checkpoints")
            return done
        config.check_plugins()
        if not resume and main:
            remove_checkpoints(folder / "checkpoints")
        with trainer.only_thread(), _threads(config.threads):
            return _train(config, folder, main, lambda: trainer.fit(config, folder, progress, track))


def _train(config: RunConfig, folder: Path, main: bool, fit: Callable[[], dict[str, Any]]) -> Result:
    """What came of the training, whatever came of it."""
    about, mine = environment(), token(folder)
    base: dict[str, Any] = {
        "config": config.to_json(),
        "command": about["command"],
        "reproduce": config.command(folder),
        "environment": about,
        "key": config.key,
    }
    if main:
        write_json(folder / "environment.json", {**about, "reproduce": base["reproduce"]})
        (folder / "error.txt").unlink(missing_ok=True)
    try:
        result = Result(status="finished", **base, **fit())
    except Diverged as event:
        result = Result(status="diverged", step=event.step, error=str(event), **base)
    except KeyboardInterrupt as event:
        step = event.args[0] if event.args else 0
        _finish(folder, mine, Result(status="interrupted", step=step, **base), main)
        raise
    except FolderLost:
        raise
    except (Exception, SystemExit) as error:  # foreign code may call for the end of the process: it ends its run
        if main:
            check_held(folder, mine)
            _keep(folder / "error.txt", traceback.format_exc())
        message = f"{type(error).__name__}: {error}"
        result = Result(status="failed", step=last_logged_step(folder), error=message, **base)
    return _finish(folder, mine, result, main)


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


def _finish(folder: Path, token: str, result: Result, main: bool) -> Result:
    """Write the result, after the checksums of all that a run which is done has written. One that the disk does not
    take is that of a failed run, which goes on from its checkpoint."""
    if not main:
        return result
    check_held(folder, token)
    data = json_bytes(dataclasses.asdict(result))
    try:
        if result.done:
            files = sums(folder, [name for name in FINISHED if (folder / name).exists()])
            write_manifest(folder, result.key, {**files, RESULT: sum_of(data)})
        write_file(folder / RESULT, data)
    except OSError as error:
        what = f"{folder / RESULT} cannot be written: {error}"
        complain(what)
        return dataclasses.replace(result, status="failed", error=what) if result.done else result
    if result.done:
        remove_checkpoints(folder / "checkpoints")
    return result
