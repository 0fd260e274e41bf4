"""Prepared data sets on disk: made once, whole or not at all, and checked when they are read.

    entry = cached("listops", {"seed": 0, "rows": 2000}, make)    # make(folder) writes the files, returns facts
    entry.folder / "tokens.npy"

An entry is a folder, named by what it was made from. It is written under another name and moved when it is whole, so a
process that is killed leaves nothing that looks like one; what it leaves is removed by the next that prepares anything.
A lock lets two processes that want the same entry end with one. Every file has a checksum in `entry.json`, compared
whenever an entry is opened; one that does not fit is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matmix.files import Damaged, read_json

VARIABLE = "MATMIX_CACHE"
"""The environment variable that names the folder, where no option does."""
PARTIAL = ".partial"
MANIFEST = "entry.json"


@dataclass(frozen=True)
class Entry:
    """A prepared data set: its folder, what was said of it when it was made, and the checksum of all of its files."""

    folder: Path
    facts: dict[str, Any]
    digest: str


def cache_folder(given: str = "") -> Path:
    """The folder of all entries: the one that is given, else that of MATMIX_CACHE, else the platform's for caches."""
    named = given or os.environ.get(VARIABLE, "")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("matmix", appauthor=False)


def cached(
    name: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None], cache: str = ""
) -> Entry:
    """The entry of this name and key, made if it is not there.

    Args:
        name: what the data are, for people who look into the folder.
        key: all that decides what is in the files, JSON-like: settings, seeds, the sizes and times of source files.
        make: writes the files into a folder that it is given, and returns facts to keep with them (JSON-like).
        cache: the folder of all entries; "" = `cache_folder()`.

    Raises:
        ValueError: where the folder cannot be written. Errors of `make` come through, and leave nothing behind.
    """
    text = json.dumps(key, sort_keys=True)
    root = cache_folder(cache)
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if (entry := _opened(folder)) is not None:
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _Lock(folder):
            if (entry := _opened(folder)) is None:
                _remove_abandoned(root)
                _made(folder, text, make)
                entry = _opened(folder)
    except OSError as error:
        if not _is_of(root, error):
            raise
        raise ValueError(
            f"cache: {root} cannot be written: {error.strerror or error}; another folder: --task.cache FOLDER, or the "
            f"environment variable {VARIABLE}"
        ) from error
    if entry is None:
        raise ValueError(f"cache: {folder} is not what was written a moment ago: the disk under {root} is not sound")
    return entry


def source_key(*files: Path) -> list[list[Any]]:
    """What stands for the contents of source files in a key: path, size and time of the last change."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _made(folder: Path, key: str, make: Callable[[Path], Mapping[str, Any] | None]) -> None:
    """Write the entry beside its place, then move it there."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        facts = dict(make(partial) or {})
        files = {str(f.relative_to(partial)): _checksum(f) for f in sorted(partial.rglob("*")) if f.is_file()}
        manifest = {"key": json.loads(key), "facts": facts, "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # one that is damaged
        os.replace(partial, folder)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _opened(folder: Path) -> Entry | None:
    """The entry in a folder; None where there is none, or one that is damaged, which is said."""
    if not folder.is_dir():
        return None
    try:
        manifest = read_json(folder / MANIFEST, "an entry", {"files": dict[str, str], "facts": dict[str, Any]})
        files, facts = manifest["files"], manifest["facts"]
    except (FileNotFoundError, Damaged):
        _say(f"{folder / MANIFEST} cannot be read; {folder.name} is made again")
        return None
    for name, known in files.items():
        try:
            sound = _checksum(folder / name) == known
        except OSError:
            sound = False
        if not sound:
            _say(f"{folder / name} is damaged or gone (its checksum is not {known[:12]}...); it is made again")
            return None
    whole = hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
    return Entry(folder, facts, whole[:16])


class _Lock:
    """Held by the process that prepares an entry. The system drops it when the process ends, however it ends."""

    def __init__(self, folder: Path, *, wait: bool = True) -> None:
        from filelock import FileLock

        self.name, self.wait = folder.name, wait
        self.lock = FileLock(folder.with_name(f".{folder.name}.lock"))

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            if not self.wait:
                raise
            _say(f"another process prepares {self.name}; waiting for it")
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _remove_abandoned(root: Path) -> None:
    """Remove what processes that were killed have left; what a living one writes is locked."""
    from filelock import Timeout

    for partial in root.glob(f".*{PARTIAL}"):
        folder = partial.with_name(partial.name[1 : -len(PARTIAL)])
        with suppress(Timeout), _Lock(folder, wait=False):
            shutil.rmtree(partial, ignore_errors=True)


def _is_of(root: Path, error: OSError) -> bool:
    """Whether an error is about the cache: a full disk, or a name in it; sources have errors of their own."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    path = Path(os.fsdecode(error.filename))
    return path == root or root in path.parents or path in root.parents


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{PARTIAL}")


def _checksum(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _say(text: str) -> None:
    print(f"cache: {text}", file=sys.stderr, flush=True)
