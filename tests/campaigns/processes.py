"""Runs, studies and reports in processes that are killed, and what they must leave. Imported by the children, too."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.experiments.killing import TINY, outputs
from tests.forked import SERVER

RUN: dict[str, Any] = {
    **TINY,
    "options": {"patch": 4, "dim": 8, "depth": 1, "dropout": 0.1},
    "recipe": {**TINY["recipe"], "steps": 40, "batch_size": 8, "checkpoint_every": 3, "eval_batch_size": 1024},
}
"""Half a second, of which a checkpoint is being written for a good part."""


@dataclass
class Figures:
    """What a campaign has seen."""

    killed: int = 0
    resumed: int = 0
    lost: int = 0
    wrong: int = 0

    def __str__(self) -> str:
        return f"{self.killed} killed, {self.resumed} resumed, {self.lost} lost, {self.wrong} wrong"


def scores(folder: Path) -> dict[str, Any]:
    """What of a result must not depend on how often the run was killed: no times, no machine."""
    found = json.loads((folder / "result.json").read_text())
    kept = ("status", "step", "config", "val", "test", "metric", "best_step", "baselines", "facts", "groups",
            "parameters", "dead_parameters", "macs", "notes")  # fmt: skip
    return {name: found[name] for name in kept}


def whole(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    return outputs(folder), scores(folder)


def leftovers(folder: Path) -> list[str]:
    """What no finished folder has in it."""
    names = (path for path in folder.rglob("*") if path.name.startswith((".tmp-", ".report-", ".attempt-", "step-")))
    return sorted(str(path.relative_to(folder)) for path in names)


def start(function: Callable[..., None], *args: Any) -> Any:
    child = SERVER.Process(target=function, args=args)
    child.start()
    return child


def strike(child: Any, delay: float, dice: random.Random) -> bool:
    """Kill a process, or one of its own, or all of them, after a while; whether something was killed."""
    child.join(delay)
    if child.exitcode is not None:
        return False
    try:
        below = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    except OSError:
        below = []
    choice = dice.choice(["parent", "worker", "all"]) if below else "parent"
    doomed = [child.pid] if choice != "worker" else []
    doomed += [int(pid) for pid in (below if choice == "all" else below[:1] if choice == "worker" else [])]
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return True


def train(config: dict[str, Any], folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    from matmix.experiments.run import RunConfig, execute

    result = execute(RunConfig.from_json(config), Path(folder))
    assert result.status == "finished", result


def study(config: dict[str, Any], folder: str, jobs: int) -> None:
    """A study whose workers are forked, which spares the seconds that a new one imports for."""
    import torch

    torch.set_num_threads(1)
    from matmix.experiments import workers
    from matmix.experiments.report import write_report
    from matmix.experiments.runner import run_study
    from matmix.experiments.study import Study

    workers.get_context = lambda how: get_context("fork")  # type: ignore[assignment]
    outcome = run_study(Study.from_json(config), folder, jobs=jobs, quiet=True)
    write_report(folder, matrices=False, pictured=0)
    assert outcome.complete and not outcome.problems, outcome


def report(folder: str, times: int = 1) -> None:
    from matmix.experiments.report import write_report

    for _ in range(times):
        write_report(folder, matrices=False, pictured=0)


def timed(function: Callable[..., None], *args: Any) -> float:
    """How long it takes, undisturbed, in a process of a server that is up."""
    start(int).join()
    began = time.monotonic()
    child = start(function, *args)
    child.join(240)
    assert child.exitcode == 0, f"{function.__name__} ends with {child.exitcode}"
    return time.monotonic() - began
