"""Whose folder is it? One is ours by a file that we wrote, `.matmix`; nothing is written into others, or removed there.

The marker is one line of JSON: what the folder is (`kind`), the version of that form, and a `token` that is drawn when
the folder is made. One that was removed and made again has another token, so a writer can tell that its own is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

MARKER = ".matmix"
VERSION = 1
# What stands in a folder that a process began and was killed in.
_BEFORE = re.compile(r"\.holder|\.tmp-.+|lease-\d{6}\.json|\.attempt-\d{6}")


class NotOurs(ValueError):
    """A folder that holds somebody else's files, or something of ours that is another thing."""


def marker(folder: Path | str) -> dict[str, Any] | None:
    """What the marker of a folder says; None where there is none.

    Raises:
        NotOurs: for a file of that name that is no marker of ours.
    """
    path = Path(folder) / MARKER
    try:
        found = json.loads(path.read_bytes())
        whole = found["made by"] == "matmix" and isinstance(found["kind"], str) and isinstance(found["token"], str)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise NotOurs(f"{path} is damaged, or not written by matmix: remove it if the folder is one of matmix's")
    if found.get("version") != VERSION:
        raise NotOurs(f"{path} is of version {found.get('version')!r}; this matmix reads version {VERSION}")
    return dict(found)


def check_ours(
    folder: Path | str, kind: str, old: Callable[[Path], bool] = lambda folder: False, name: str = "out"
) -> dict[str, Any] | None:
    """Raise unless a folder is free (absent or empty) or ours and of this kind; nothing is touched.

    Args:
        folder: as the user names it: relative, a link to a folder, or not there.
        kind: what it is to be: "run", "study".
        old: tells a folder that was made before there were markers, from its files.
        name: of the option that names it, for the message.

    Returns:
        What its marker says; None where it has none yet.

    Raises:
        NotOurs: names the folder and what is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise NotOurs(f"{name} must be a folder, and {folder} is {'a file' if folder.exists() else 'a dead link'}")
        return None
    found = marker(folder)
    if found is not None:
        if found["kind"] != kind:
            raise NotOurs(f"{name} must be a folder of its own, and {folder} is that of a {found['kind']}, not {kind}")
        return found
    strangers = sorted(names_in(folder))
    if strangers and not old(folder):
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise NotOurs(
            f"{name} must be a new or empty folder, or one that matmix made as a {kind}, and {folder} holds "
            f"{', '.join(strangers[:3])}{more}: take another folder"
        )
    return None


def claim(
    folder: Path | str,
    kind: str,
    old: Callable[[Path], bool] = lambda folder: False,
    name: str = "out",
    **more: Any,
) -> str:
    """Make a folder, or take one that is free, and mark it as ours; one that is ours already stays as it is.

    Args:
        folder, kind, old, name: as in `check_ours`.
        more: what a new marker says besides.

    Returns:
        Its token.

    Raises:
        NotOurs: as `check_ours`.
    """
    folder = Path(folder)
    found = check_ours(folder, kind, old, name)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        found = mark(folder, kind, **more)
    return str(found["token"])


def token(folder: Path | str) -> str:
    """The token of a folder; "" where it has no marker that can be read."""
    try:
        return str((marker(folder) or {}).get("token", ""))
    except NotOurs:
        return ""


def mark(folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    """Write the marker of a folder, all or nothing; the token of one that is there stays."""
    sweep(folder)  # marks that a killed process had not ended
    said = {"made by": "matmix", "kind": kind, "version": VERSION, "token": token(folder) or uuid.uuid4().hex, **more}
    fresh = temporary(folder / MARKER)
    try:
        with open(fresh, "w", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, folder / MARKER)
    except BaseException:  # a full disk is not filled further
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    return said


def remove(folder: Path, made: str) -> list[Path]:
    """Remove the files below a folder that we made, then the folders that are empty, this one too.

    Args:
        folder: where; nothing happens if it is not there. Links are not followed.
        made: a regular expression of the paths of our files, from the folder on, with "/" between names.

    Returns:
        What stays, since we did not make it.
    """
    ours, stays = re.compile(made), []
    if folder.is_symlink():
        return [folder]
    for above, _, files in os.walk(folder, topdown=False):
        for file in (Path(above, name) for name in files):
            if not ours.fullmatch(file.relative_to(folder).as_posix()):
                stays.append(file)
                continue
            try:
                file.unlink(missing_ok=True)
            except OSError:  # of the system: it may not be removed
                stays.append(file)
        try:
            os.rmdir(above)
        except OSError:  # not empty, or gone
            stays += [path for path in Path(above).glob("*") if path.is_symlink() and path.is_dir()]
    return stays


def names_in(folder: Path) -> set[str]:
    """Names in a folder, without those that say nothing of whose it is: what a killed process left."""
    return {path.name for path in folder.iterdir() if not _begun(path)}


def _begun(path: Path) -> bool:
    """Whether a file says nothing of whose the folder is: an empty lock, what a killed process left."""
    return (path.name == ".lock" and path.stat().st_size == 0) or _BEFORE.fullmatch(path.name) is not None


def temporary(path: Path) -> Path:
    """A name beside a path, for what is written whole before it takes that place: no other process or thread has it,
    and `sweep` knows from it whose it was."""
    return path.with_name(f".tmp-{path.name}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep(folder: Path) -> None:
    """Remove from a folder what processes that were killed left behind under `temporary` names: of this machine where
    the process is gone, of others after a day."""
    for path in folder.glob(".tmp-*"):
        found = _TEMPORARY.fullmatch(path.name)
        with suppress(OSError):
            if found and (_is_gone(found) or time.time() - path.lstat().st_mtime > _STALE):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\.tmp-.+-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_STALE = 86400.0
"""Seconds after which nobody writes into a temporary file any more."""


def _is_gone(name: re.Match[str]) -> bool:
    """Whether the process that made a temporary name is known to have ended."""
    if name[1] != _host():
        return False
    try:
        os.kill(int(name[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's, which is alive
        return False
    try:  # one that was killed has a number until its parent asks for its end
        return Path(f"/proc/{name[2]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


@cache
def _host() -> str:
    """Eight digits for this machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
