"""Worker processes of a study. One that dies (killed, out of memory) costs its run only.

The number of threads is part of each run, so the results do not depend on how many workers there are.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from matmix.experiments import lease as lease_settings
from matmix.experiments.config import RunConfig, RunError
from matmix.experiments.folder import InUse, Result, check_run, claim_run
from matmix.experiments.lease import Lease, Watch
from matmix.experiments.output import steady
from matmix.experiments.plugins import import_all
from matmix.experiments.run import execute
from matmix.experiments.study import StudyRun
from matmix.files import Damaged
from matmix.folders import sweep

Listener = Callable[[StudyRun, str, Any], None]
"""Called with a run and "start", None; "progress", news; "end", (status, text); or "died", how."""
STOP_SECONDS = 60.0


def run_one(
    config: dict[str, Any], folder: str, news: Callable[[dict[str, Any]], None], track: str = ""
) -> tuple[str, str]:
    """Do one run; its status and its score or error in a line, whatever goes wrong in it.

    A folder that is held is tried again for a while: after a parent was killed, its workers take some moments to notice
    it and to let go of their folders.
    """
    for patience in (0.5, 1, 2, 4, 8, None):
        try:
            result = execute(RunConfig.from_json(config), Path(folder), progress=news, track=track)
        except Exception as error:  # of a task or mixer, which may be foreign code: the study goes on
            if not isinstance(error, InUse) or patience is None:
                return _ended_by(error)
            time.sleep(patience)
        else:
            return result.status, _in_a_line(result)
    raise AssertionError("the last attempt returns")


def _ended_by(error: Exception) -> tuple[str, str]:
    """Status and error of a run whose folder cannot be used."""
    if isinstance(error, RunError | Damaged):
        return "refused" if isinstance(error, RunError) else "damaged", str(error)
    return "failed", f"{type(error).__name__}: {error}"


def run_what_is_free(runs: Sequence[tuple[StudyRun, Path]], tell: Listener, track: str = "") -> None:
    """Do the runs that no other worker holds, here, one after the other, until all are done.

    What is held is passed over. Where nothing else is left it is looked at again after a while, since its holder may
    have died (see `lease.py`). A run that failed is not tried again.
    """
    watch, left = Watch(), list(runs)
    while left:
        waiting = []
        for run, folder in left:
            try:
                if not _is_done(folder):
                    check_run(folder)
                    lease = watch.take(folder)
                    if lease is not None:
                        _under_lease(lease, run, tell, track)
                    elif not _is_done(folder):
                        waiting.append((run, folder))
            except (OSError, Damaged, RunError) as error:  # before it was begun
                tell(run, "start", None)
                tell(run, "end", _ended_by(error))
        if len(waiting) == len(left):
            time.sleep(min(lease_settings.BEAT, lease_settings.EXPIRY / 10))
        left = waiting


def _under_lease(lease: Lease, run: StudyRun, tell: Listener, track: str) -> None:
    """One run, in a folder of its own until it is done."""
    try:
        if _is_done(lease.folder):
            lease.release(done=True)
            return
    except Damaged:
        lease.release()
        raise
    tell(run, "start", None)
    done, ended = False, ("refused", "another worker has taken it over")
    try:
        sweep(lease.folder)
        claim_run(lease.folder, run.config)
        result = execute(run.config, lease.begin(), progress=partial(tell, run, "progress"), track=track, held=True)
        if lease.publish():
            done, ended = result.done, (result.status, _in_a_line(result))
    except KeyboardInterrupt:
        tell(run, "end", ("interrupted", ""))
        raise
    except Exception as error:  # as in `run_one`
        if isinstance(error, OSError) and not lease.held():  # who has taken it over has removed this attempt
            ended = "refused", f"another worker has taken it over: {error}"
        else:
            ended = _ended_by(error)
    finally:
        lease.release(done=done)
    tell(run, "end", ended)


def _is_done(folder: Path) -> bool:
    result = Result.read(folder)
    return result is not None and result.done


def _in_a_line(result: Result) -> str:
    score = result.test.get(result.metric)
    return result.error or (f"test {result.metric} {score:.4g}" if score is not None else "")


def run_in_workers(
    runs: Sequence[tuple[StudyRun, Path]], imports: Sequence[str], jobs: int, tell: Listener, track: str = ""
) -> None:
    """Do the runs in ``jobs`` new processes. Ctrl-C lets every worker save a checkpoint, and is raised again.

    Scripts that call this need the guard ``if __name__ == "__main__"``: processes are spawned, not forked.
    """
    pool: list[_Worker] = []
    waiting = list(runs)
    try:
        while len(pool) < min(jobs, len(runs)):
            pool.append(_Worker(imports, track))
        while waiting or any(worker.current for worker in pool):
            for index, worker in enumerate(pool):
                if worker.current is None and waiting:
                    if not worker.process.is_alive():
                        worker = pool[index] = _Worker(imports, track)
                    worker.begin(*waiting.pop(0), tell)
            for worker in _ready(pool):
                worker.listen(tell)
    except KeyboardInterrupt:
        _stop(pool, tell)
        raise
    finally:
        for worker in pool:
            worker.close()


class _Worker:
    """A process that does one run after the other, and the pipe to it."""

    def __init__(self, imports: Sequence[str], track: str) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Not a daemon: those may have no processes of their own, which loaders of data have. close() ends it.
        self.process = context.Process(target=_work, args=(theirs, tuple(imports), track), daemon=False)
        with _held_back():
            self.process.start()
        theirs.close()
        self.current: StudyRun | None = None

    def begin(self, run: StudyRun, folder: Path, tell: Listener) -> None:
        self.current = run
        tell(run, "start", None)
        with suppress(OSError):  # it died; listen() finds out
            self.pipe.send((run.config.to_json(), str(folder)))

    def listen(self, tell: Listener, *, stopping: bool = False) -> None:
        """Pass on what the worker said, and what its death means."""
        gone = False
        try:
            while self.current is not None and self.pipe.poll():
                kind, content = self.pipe.recv()
                run = self.current
                if kind == "end":
                    self.current = None
                tell(run, kind, content)
        except (EOFError, OSError):  # everything it said is read
            gone = True
        if self.current is not None and gone:
            self.process.join(5)
            run, self.current = self.current, None
            code = self.process.exitcode
            if stopping:
                tell(run, "end", ("interrupted", ""))
            else:
                tell(run, "died", f"the worker process died with exit code {code}{_meaning(code)}")

    def close(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _ready(pool: list[_Worker]) -> list[_Worker]:
    busy = [worker for worker in pool if worker.current is not None]
    owner = {worker.pipe: worker for worker in busy}  # the pipe of a dead process is ready too: it is at its end
    return [owner[pipe] for pipe in wait(list(owner), timeout=1.0)]  # type: ignore[index]


def _stop(pool: list[_Worker], tell: Listener) -> None:
    """Ask all workers to stop; whoever has not after a minute is killed. Checkpoints survive that."""
    busy = [worker for worker in pool if worker.current is not None]
    for worker in busy:
        if worker.process.is_alive():
            worker.process.terminate()  # the trainer takes SIGTERM as a wish: it saves, and stops
    until = time.monotonic() + STOP_SECONDS
    while any(worker.current for worker in busy) and time.monotonic() < until:
        for worker in _ready(busy):
            worker.listen(tell, stopping=True)
    for worker in busy:
        if worker.current is not None:
            worker.process.kill()
            worker.process.join()
            worker.listen(tell, stopping=True)


def _work(pipe: Connection, imports: Sequence[str], track: str) -> None:
    """The body of a worker process."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone, which then asks every worker once
        for number in _TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINAL)
    with steady():
        _serve(pipe, imports, track)


_TERMINAL = {signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}
"""What a terminal sends to all processes in front of it."""


@contextmanager
def _held_back() -> Iterator[None]:
    """A process that is started here inherits that the signals of the terminal wait, until it can do without them:
    else Ctrl-C would end it in the middle of its imports. Here they come at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, imports: Sequence[str], track: str) -> None:
    """Do what comes through the pipe, until it ends."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    import_all(imports)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        if work is None:
            return

        def news(content: dict[str, Any]) -> None:
            with suppress(OSError):  # the parent is gone: _follow_parent sees to it
                pipe.send(("progress", content))

        try:
            config, folder = work
            ended = run_one(config, folder, news, track)
        except KeyboardInterrupt:
            ended = "interrupted", ""
        with suppress(OSError):
            pipe.send(("end", ended))
        if ended[0] == "interrupted":
            return


def _follow_parent() -> None:
    """When the parent is gone, save and stop: nobody listens any more, and a new start wants the folders."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _meaning(code: int | None) -> str:
    if code is None or code >= 0:
        return ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "a signal"
    return f" ({name}{', often lack of memory' if name == 'SIGKILL' else ''})"
