"""Run configurations in processes that end by SIGKILL at a chosen instant. Imported by the forked children, too."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from tests.forked import SERVER

TINY: dict[str, Any] = {
    "task": "digits",
    "mixer": "attention(head_dim=4)",
    "seed": 3,
    # Dropout, so that a generator that is not restored shows.
    "options": {"patch": 2, "dim": 8, "depth": 1, "dropout": 0.1},
    "recipe": {
        "steps": 60, "batch_size": 32, "log_every": 4, "eval_every": 9, "checkpoint_every": 7,
        # Rates of their own and betas that move: an optimiser that is not restored shows.
        "groups": ["position blocks.*.bias lr=0.01 weight_decay=0.3", "head.* lr=0.0001"], "schedule": "onecycle",
    },
}  # fmt: skip
"""Settings that finish in a second; the intervals share no factor, so checkpoints fall between log lines."""


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a run that must not depend on how often it was killed."""
    return {name: (folder / name).read_bytes() for name in ("final.safetensors", "best.safetensors", "metrics.jsonl")}


def run(
    folder: Path, config: dict[str, Any] = TINY, *, die: tuple[str, int] | None = None, patience: float = 120
) -> int:
    """Execute a run in a child; with `die=("step", 5)` it is killed before its fifth step there, with ("file", 5) at
    its fifth operation on files. Returns the exit code (-9: killed); after `patience` seconds it is said to hang."""
    child = SERVER.Process(target=_child, args=(config, str(folder), die))
    child.start()
    child.join(patience)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def wait_for_step(folder: Path, step: int, process: Any) -> None:
    """Until the run has logged this step (or has ended)."""
    for _ in range(12000):
        log = folder / "metrics.jsonl"
        found = re.findall(r'"step": (\d+)', log.read_text()) if log.exists() else []
        if process.exitcode is not None or any(int(one) >= step for one in found):
            return
        time.sleep(0.005)
    raise AssertionError("the run hangs")


def _child(config: dict[str, Any], folder: str, die: tuple[str, int] | None) -> None:
    import torch

    torch.set_num_threads(1)
    from matmix.experiments import trainer
    from matmix.experiments.run import RunConfig, execute

    if die is not None:
        kind, left = die

        def mortal(function: Any) -> Any:
            def wrapped(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return wrapped

        if kind == "step":
            trainer.accumulate = mortal(trainer.accumulate)
        else:
            for owner, name in (
                (os, "fsync"),
                (os, "replace"),
                (Path, "rename"),
                (Path, "mkdir"),
                (Path, "unlink"),
                (os, "rmdir"),
            ):
                setattr(owner, name, mortal(getattr(owner, name)))
    result = execute(RunConfig.from_json(config), Path(folder))
    assert result.status == "finished", result
