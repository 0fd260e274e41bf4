"""Sizes and checksums of files: how they are made and compared, and what the marker of a folder says of its files.

A folder that is saved once (a surgery, a forecaster) has them in its marker (`files`), so it has no further file; a run
has a manifest, since it is written to for days (see `matmix.experiments.manifest`). Folders of older versions have
none, and are read unchecked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matmix.files import Damaged
from matmix.folders import check_ours, mark

Sums = dict[str, dict[str, Any]]


def sums(folder: Path, names: Iterable[str]) -> Sums:
    """Size and SHA-256 of files, by name."""
    found = {}
    for name in names:
        with open(folder / name, "rb") as file:
            found[name] = {"size": 0, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            found[name]["size"] = file.tell()
    return found


def sum_of(data: bytes) -> dict[str, Any]:
    """Size and SHA-256 of what a file holds, or is to hold."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def difference(is_: dict[str, Any], said: dict[str, Any]) -> str:
    """How a file is other than its checksum says, in words."""
    if is_["size"] != said.get("size", is_["size"]):
        return f"it has {is_['size']:,} bytes of {said['size']:,}"
    return "it does not have its checksum"


def damages(folder: Path, files: Sums, only: Iterable[str] = ()) -> dict[str, str]:
    """Files that are damaged or missing by their checksums, and how; all of them are read, or some only."""
    wrong = {}
    for name, said in files.items():
        if only and name not in only:
            continue
        try:
            is_ = sums(folder, [name])[name]
        except FileNotFoundError:
            wrong[name] = "missing"
            continue
        except OSError as error:
            wrong[name] = f"it cannot be read: {error.strerror or error}"
            continue
        if is_ != said:
            wrong[name] = difference(is_, said)
    return wrong


def seal(folder: Path, kind: str, names: Iterable[str]) -> None:
    """Note in the marker of a folder the checksums of its files, once they are all written."""
    mark(folder, kind, files=sums(folder, names))


def check_sealed(folder: Path, kind: str, what: str) -> None:
    """Raise unless the files of a folder are those that `seal` noted; nothing where it noted none.

    Args:
        folder: that of a marker, or of older versions, which had none.
        kind: of the folder.
        what: it should hold, in words for the error.

    Raises:
        Damaged: names the first file that is another one, or missing.
        NotOurs: for a marker that is damaged, or of another kind.
    """
    said = check_ours(folder, kind, lambda folder: True, "folder") or {}
    for name, how in damages(folder, said.get("files", {})).items():
        raise Damaged(folder / name, what, "it is missing" if how == "missing" else how)
