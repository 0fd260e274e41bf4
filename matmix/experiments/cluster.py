"""The runs of a study spread over a Ray cluster.

The folder of the study and the files that it imports must be on storage that every node mounts at the same path, and
matmix must be installed on every node, or come with `runtime_env`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matmix.experiments.extras import advice
from matmix.experiments.plugins import import_all
from matmix.experiments.study import StudyRun
from matmix.experiments.workers import Listener, run_one
from matmix.ranges import Amount
from matmix.settings import Settings

TRIES = 3
"""A run whose worker or node is lost goes on from its last checkpoint so often; one that takes its process down would
be tried for ever."""
SECONDS = 0.5
"""Between two looks at the cluster, and the least between two words of a run."""


@dataclass(frozen=True)
class Cluster(Settings):
    """Which cluster, and what each run asks of it, beside as many CPUs as it has threads."""

    address: str = ""
    """"auto", "HOST:PORT" or "ray://HOST:PORT"; "": the one that `RAY_ADDRESS` names, or a new one on this machine."""
    gpus: Amount = 0.0
    """A fraction puts several runs on one GPU."""
    memory: Amount = 0.0
    """GiB; 0 asks for none in particular."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's: {"pip": [...], "env_vars": {...}}."""

    def asks(self, threads: int) -> dict[str, float]:
        """Amounts by Ray's names of resources."""
        wanted = {"CPU": float(threads), "GPU": self.gpus, "memory": self.memory * 2**30}
        return {name: amount for name, amount in wanted.items() if amount}


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
    cluster: Cluster,
    tell: Listener,
    track: str = "",
) -> None:
    """Do the runs as Ray tasks; Ray decides where and how many at once.

    At most twice as many as the cluster holds are handed in, so that one of thousands of runs holds no thousands of
    tasks. A run says itself when it starts. One whose worker or node is lost is handed in again, and goes on from its
    last checkpoint; so does all that a driver leaves which is killed, when the study is started again. Ctrl-C cancels
    the tasks, which save a checkpoint, and is raised again.

    Raises:
        ValueError: where there is no cluster at the address.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    if ours:
        _join(ray, cluster)
    options = {"num_cpus": threads, "num_gpus": cluster.gpus, "max_retries": 0}
    remote = ray.remote(**options, **({"memory": cluster.memory * 2**30} if cluster.memory else {}))(_remote)
    mailbox = _mailbox(ray)
    waiting = deque((number, 1) for number in range(len(runs)))
    running: dict[Any, tuple[int, int]] = {}  # of each task, the number of its run and which try it is
    started: set[int] = set()

    def pass_on() -> None:
        for number, kind, content in ray.get(mailbox.take.remote()):
            if kind == "start" and number not in started:
                started.add(number)
                tell(runs[number][0], "start", None)
            elif kind == "progress" and number in started:
                tell(runs[number][0], "progress", content)

    def end(number: int, kind: str, content: Any) -> None:
        if number not in started:
            tell(runs[number][0], "start", None)
        started.discard(number)
        tell(runs[number][0], kind, content)

    try:
        while waiting or running:
            while waiting and len(running) < 2 * _slots(ray, cluster.asks(threads)):
                number, attempt = waiting.popleft()
                run, folder = runs[number]
                config, where = run.config.to_json(), str(folder.resolve())
                running[remote.remote(number, config, where, tuple(imports), track, mailbox)] = number, attempt
            done = ray.wait(list(running), num_returns=len(running), timeout=SECONDS)[0]
            pass_on()
            for reference in done:
                number, attempt = running.pop(reference)
                try:
                    end(number, "end", ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    end(number, "died", f"the Ray task ended: {_last_line(error)}")
                except ray.exceptions.RayError as error:
                    if attempt == TRIES:
                        end(number, "died", f"the Ray task was lost {TRIES} times: {_last_line(error)}")
                    else:
                        waiting.append((number, attempt + 1))
                        end(number, "end", ("interrupted", "its worker or node was lost; it will go on"))
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=30.0)
        pass_on()
        for number in {number for number, _ in running.values()} & started:
            end(number, "end", ("interrupted", ""))
        raise
    finally:
        ray.kill(mailbox)
        if ours:
            ray.shutdown()


def _join(ray: Any, cluster: Cluster) -> None:
    given: dict[str, Any] = {"address": cluster.address} if cluster.address else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, runtime_env=cluster.runtime_env or None, **given)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"ray: there is no cluster at address {cluster.address!r}: {_last_line(error)}") from None


def _slots(ray: Any, asks: dict[str, float]) -> int:
    """How many runs the cluster holds now; at least one, since a cluster may grow when it is asked."""
    there = ray.cluster_resources()
    return max(1, int(min(there.get(name, 0.0) // amount for name, amount in asks.items())))


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


class _Mailbox:
    """What runs say of themselves, until the driver asks."""

    def __init__(self) -> None:
        self.news: list[tuple[int, str, Any]] = []

    def put(self, *news: Any) -> None:
        self.news.append(news)

    def take(self) -> list[tuple[int, str, Any]]:
        news, self.news = self.news, []
        return news


def _mailbox(ray: Any) -> Any:
    """On the driver's own node, so that no other one's end takes it along."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=here).remote()


def _remote(
    number: int, config: dict[str, Any], folder: str, imports: Sequence[str], track: str, mailbox: Any
) -> tuple[str, str]:
    mailbox.put.remote(number, "start", None)
    said = 0.0

    def news(content: dict[str, Any]) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            mailbox.put.remote(number, "progress", content)

    import_all(imports)
    return run_one(config, folder, news, track)
