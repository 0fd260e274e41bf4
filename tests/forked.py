"""Processes that are forked from a server which has imported everything once and computed nothing: a start costs no
import, which is seconds. Imported by the children, too."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "torch._dynamo", "torchmetrics", "sklearn.model_selection", "accelerate", "matmix.experiments.cli",
     "matmix.experiments.trainer", "matmix.experiments.run", "sequence.tasks.digits", __name__]
)  # fmt: skip


def start_command(words: list[str], log: Path) -> Any:
    """`matmix WORDS` in a child, as from a shell: stdout and stderr go to a file, the exit status is the process's."""
    return _start(log, _command, words)


def run_script(script: Path, folder: Path) -> tuple[int, str]:
    """`python SCRIPT` in a child and in this folder: its exit status, stdout and stderr together."""
    log = folder / "said.txt"
    child = _start(log, _script, str(script), str(folder))
    child.join(300)
    assert child.exitcode is not None, f"{script} hangs"
    return child.exitcode, log.read_text()


def tell(child: Any, number: int) -> None:
    """A signal to a child. One that has ended at an earlier signal is gone: the server has waited for it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)


def _start(log: Path, function: Callable[..., None], *args: Any) -> Any:
    child = SERVER.Process(target=_said, args=(str(log), function, *args))
    child.start()
    return child


def _said(log: str, function: Callable[..., None], *args: Any) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*args)


def _command(words: list[str]) -> None:
    from matmix.experiments.cli import main

    main(words)


def _script(script: str, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = [script]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
