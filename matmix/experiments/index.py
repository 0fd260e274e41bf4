"""What stands in the run folders of a study, in one file: `OUT/index.jsonl`, a line a run.

A study of ten thousand runs is read in seconds instead of minutes. The folders stay the truth: an entry is taken only
where its files are the very ones that it was made from (inode, time and size), and an index that is lost, torn, changed
or of another version is made anew. Processes that write it at once lose nothing but each other's entries.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matmix.experiments.checkpoint import write_file
from matmix.experiments.folder import CONFIG, CONFIG_KEYS, RESULT, Result, check_whole, read_metrics
from matmix.files import Damaged, read_json
from matmix.folders import MARKER

NAME = "index.jsonl"
VERSION = 3
READ = ("config.json", "result.json", "metrics.jsonl")
WANTED = (*READ, "manifest.json")
Stamp = list[int] | None


@dataclass(frozen=True)
class Entry:
    """One run folder: its configuration, its result and its curve, each None or empty where there is none."""

    config: dict[str, Any] | None
    found: dict[str, Any] | None
    curve: tuple[dict[str, Any], ...]
    damage: str = ""
    """Why a file of the run cannot be read; then nothing of it is shown but this and the configuration."""

    @cached_property
    def result(self) -> Result | None:
        return None if self.found is None else Result.of(self.found, Path(NAME))

    @property
    def status(self) -> str:
        """Of the result, "missing" where there is none, "damaged" where a file is; a plan asks for no more."""
        return "damaged" if self.damage else "missing" if self.found is None else self.found["status"]


class Index:
    """The runs below a folder, read when asked for; `save` keeps what was read."""

    def __init__(self, root: Path) -> None:
        self.root, self.fresh = root, False
        self._known = _load(root / NAME)
        self._entries: dict[str, tuple[list[Stamp], Entry]] = {}

    def __getitem__(self, folder: str) -> Entry:
        """The run in a folder, named from the root on."""
        where = os.path.join(self.root, folder)
        try:
            stamps = [_stamp(os.path.join(where, name)) for name in WANTED]
        except OSError as error:  # a file that stands where the folder should be, or one that may not be entered
            return Entry(None, None, (), f"{where}: expected a folder of a run, but {error.strerror}")
        if folder in self._entries and self._entries[folder][0] == stamps:
            return self._entries[folder][1]
        known = self._known.get(folder)
        if known is not None and known["stamps"] == stamps:
            found, config = known["result"], known["config"]
            if config is None and found is not None:
                config = found["config"]
            entry = Entry(config, found, tuple(known["curve"]))
        else:
            entry = _read(Path(where), stamps)
            if entry.damage:  # is read again each time, so that an index never speaks of it
                return entry
            self.fresh = True
        self._entries[folder] = stamps, entry
        return entry

    def save(self) -> None:
        """Write what was read and was not in the file; nothing where that is nothing, the folder is read-only, or
        somebody else has a file of this name."""
        if not self.fresh or not _may_be_ours(self.root / NAME):
            return
        lines = [json.dumps(_line(folder, *found)) for folder, found in self._entries.items()]
        kept = [json.dumps(line) for folder, line in self._known.items() if folder not in self._entries]
        text = "".join(f"{line}\n" for line in (*lines, *kept)).encode()
        try:
            write_file(self.root / NAME, _head(text) + b"\n" + text)
        except OSError:
            return
        self.fresh = False


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        first, _, lines = path.read_bytes().partition(b"\n")
        if first != _head(lines):
            return {}
        return {line["folder"]: line for line in map(json.loads, lines.splitlines())}
    except (OSError, ValueError, RecursionError):  # lost, torn, or somebody else's: the folders have it all
        return {}


def _may_be_ours(path: Path) -> bool:
    """Whether there is no file of this name that somebody else may have written."""
    try:
        with open(path, "rb") as file:
            first = file.readline(200)
    except OSError:
        return True
    return (path.parent / MARKER).exists() or first.startswith(b'{"version":')


def _head(lines: bytes) -> bytes:
    return json.dumps({"version": VERSION, "sha256": hashlib.sha256(lines).hexdigest()}).encode()


def _line(folder: str, stamps: list[Stamp], entry: Entry) -> dict[str, Any]:
    own = None if entry.found is not None and entry.found["config"] == entry.config else entry.config
    return {"folder": folder, "stamps": stamps, "config": own, "result": entry.found, "curve": entry.curve}


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return [found.st_ino, found.st_mtime_ns, found.st_size]


def _read(folder: Path, stamps: list[Stamp]) -> Entry:
    """A folder as it is now; a file that went since its stamp was taken is none."""
    read: tuple[Callable[[], Any], ...] = (
        lambda: read_json(folder / "config.json", CONFIG, CONFIG_KEYS),
        lambda: read_json(folder / "result.json", RESULT, {}),
        lambda: tuple(read_metrics(folder)),
    )
    found: list[Any] = [None, None, ()]
    for at, (stamp, one) in enumerate(zip(stamps, read, strict=False)):
        if stamp is not None:
            try:
                found[at] = one()
            except FileNotFoundError:
                continue
            except Damaged as error:
                return Entry(found[0], None, (), str(error))
    try:
        if found[1] is not None:
            result = Result.of(found[1], folder / "result.json")
            if found[0] is not None:
                result.check_run(found[0], folder / "result.json")
            if result.done:
                check_whole(folder, result, READ)
    except Damaged as error:
        return Entry(found[0], None, (), str(error))
    return Entry(*found)
