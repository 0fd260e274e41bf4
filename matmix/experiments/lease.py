"""Who does a run, told through files alone, for machines that share a folder and no lock.

RUN/lease-000001.json    the first that took it: who, and a count that goes up while it lives
RUN/lease-000002.json    the next one, after the first was silent for too long or let go
RUN/.attempt-000002/     where it works; what is whole is moved up when the run ends

The highest number holds the run. A file is made by exclusive creation, which is atomic on network file systems too, so
of two that find a run free one gets it. Whether a holder lives is seen by its count alone, on the clock of who looks:
clocks of machines need not agree. A process that was stopped and goes on writes into its own attempt, sees a higher
number, and moves nothing up.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from matmix.experiments.checkpoint import remove_checkpoints, remove_run, write_file
from matmix.files import Damaged, read_json
from matmix.folders import MARKER, mark

BEAT = 30.0
"""Seconds between two signs of life."""
EXPIRY = 300.0
"""Seconds of silence after which a run is taken over."""


class Lease:
    """A run that this process holds, until `release`; a thread gives the signs of life."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = folder / f"lease-{number:06}.json"
        self.attempt = folder / f".attempt-{number:06}"
        self._about = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def take(self) -> bool:
        """Get it, unless another process was first."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                json.dump({**self._about, "beat": 0}, file)
        except FileExistsError:
            return False
        except OSError:
            self._drop()
            raise
        self._thread.start()
        return True

    def _drop(self) -> None:
        with suppress(OSError):  # read-only: the next one waits until it is silent for too long
            self.path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether nobody has taken it over."""
        return self.path.exists() and max(numbers(self.folder)) == self.number

    def release(self, *, done: bool = False) -> None:
        """Let go of it; with `done` nobody needs it any more, and what it was done with is removed."""
        self._ended.set()
        self._thread.join()
        if done:
            for attempt in self.folder.glob(".attempt-*"):
                remove_run(attempt)
            for number in numbers(self.folder):
                with suppress(OSError):
                    Lease(self.folder, number).path.unlink(missing_ok=True)
        elif self.held():
            try:
                self._write({"released": True})
            except OSError:  # a full disk: one that is not there holds nothing either
                self._drop()

    def begin(self) -> Path:
        """The folder to work in, with the checkpoints of who held the run before."""
        older = sorted(path for path in self.folder.glob(".attempt-*") if path < self.attempt)
        source = older[-1] if older else self.folder
        self.attempt.mkdir(exist_ok=True)
        mark(self.attempt, "run")  # before anything stands in it
        for name in ("metrics.jsonl", "checkpoints"):
            # A process that does not know yet that it lost the run may write there: checkpoints have checksums.
            with suppress(OSError, shutil.Error):
                if (source / name).is_dir():
                    shutil.copytree(source / name, self.attempt / name, dirs_exist_ok=True)
                elif (source / name).exists():
                    shutil.copyfile(source / name, self.attempt / name)
        return self.attempt

    def publish(self) -> bool:
        """Move up what the attempt made, the result last; nothing if the run was taken over."""
        if not self.held():
            return False
        remove_checkpoints(self.folder / "checkpoints")
        names = sorted((path.name for path in self.attempt.iterdir()), key=lambda name: name == "result.json")
        for name in (name for name in names if not name.startswith(".") or name == MARKER):
            if (self.folder / name).is_dir():  # a tracker's, of an attempt that failed: no folder takes its place
                shutil.copytree(self.attempt / name, self.folder / name, dirs_exist_ok=True)
            else:
                os.replace(self.attempt / name, self.folder / name)
        for attempt in self.folder.glob(".attempt-*"):
            if attempt <= self.attempt:
                remove_run(attempt)
        return True

    def _live(self) -> None:
        count = 0
        while not self._ended.wait(BEAT):
            count += 1
            with suppress(OSError):  # the next one may get through
                if not self.held():
                    return
                self._write({"beat": count})

    def _write(self, more: dict[str, Any]) -> None:
        write_file(self.path, json.dumps({**self._about, **more}).encode())


class Watch:
    """What this process has seen of the leases of others."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def take(self, folder: Path) -> Lease | None:
        """The lease of a run, if it is free: never taken, let go of, or held by one that gives no sign of life."""
        folder.mkdir(parents=True, exist_ok=True)
        last = max(numbers(folder), default=0)
        if last and not self._free(Lease(folder, last).path):
            return None
        lease = Lease(folder, last + 1)
        return lease if lease.take() else None

    def _free(self, path: Path) -> bool:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # the run was done in this moment
            return False
        with suppress(ValueError, RecursionError):  # a torn one: its process died as it took it, or takes it now
            about = json.loads(content)
            if isinstance(about, dict) and about.get("released"):
                return True
        before, since = self._seen.get(path, (None, 0.0))
        if content != before:
            self._seen[path] = content, time.monotonic()
            return False
        return time.monotonic() - since >= EXPIRY


def holder(folder: Path) -> str | None:
    """The worker that holds a run, for processes that take no lease: by the time of its last sign of life."""
    last = max(numbers(folder), default=0)
    try:
        path = Lease(folder, last).path
        silent = time.time() - path.stat().st_mtime
        about = read_json(path, "a lease", {"pid": int, "host": str})
    except FileNotFoundError:
        return None
    except Damaged:
        about = {"pid": "of an unknown number", "host": "an unknown machine"}
    alive = not about.get("released") and silent < EXPIRY
    return f"the worker {about['pid']} on {about['host']}" if alive else None


def numbers(folder: Path) -> list[int]:
    """Of all leases of a run; files with other names are somebody else's."""
    found = (re.fullmatch(r"lease-(\d{6,12})\.json", path.name, re.ASCII) for path in folder.glob("lease-*.json"))
    return [int(name[1]) for name in found if name]
