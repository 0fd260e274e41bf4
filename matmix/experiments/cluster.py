"""The runs of a study spread over a Ray cluster.

The folder of the study and the files that it imports must be on storage that every node mounts at the same path, and
matmix must be installed on every node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matmix.experiments.extras import advice
from matmix.experiments.plugins import import_all
from matmix.experiments.study import StudyRun
from matmix.experiments.workers import Listener, run_one


def require_ray() -> Any:
    """The ray module, or an error that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"{advice(error)}, or run the study without Ray") from None
    return ray


def run_on_ray(
    runs: Sequence[tuple[StudyRun, Path]],
    imports: Sequence[str],
    threads: int,
    gpus: float,
    tell: Listener,
    track: str = "",
) -> None:
    """Do the runs as Ray tasks of ``threads`` CPUs and ``gpus`` GPUs each; Ray decides where and how many at once.

    Joins the cluster that ``RAY_ADDRESS`` names, or starts one on this machine. Ctrl-C cancels the tasks, which save a
    checkpoint, and is raised again.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_remote)
    running: dict[Any, StudyRun] = {}
    try:
        for run, folder in runs:
            tell(run, "start", None)
            reference = remote.remote(run.config.to_json(), str(folder.resolve()), tuple(imports), track)
            running[reference] = run
        while running:
            for reference in ray.wait(list(running), timeout=1.0)[0]:
                run = running.pop(reference)
                try:
                    tell(run, "end", ray.get(reference))
                except ray.exceptions.RayError as error:
                    tell(run, "died", f"the Ray task ended: {str(error).strip().splitlines()[-1]}")
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference)
        ray.wait(list(running), num_returns=len(running), timeout=30.0)
        for run in running.values():
            tell(run, "end", ("interrupted", ""))
        raise
    finally:
        if ours:
            ray.shutdown()


def _remote(config: dict[str, Any], folder: str, imports: Sequence[str], track: str) -> tuple[str, str]:
    import_all(imports)
    return run_one(config, folder, lambda news: None, track)
