"""Checksums of finished files: `manifest.json` says of each file of a run how long it is and what its SHA-256 is.

It is written just before `result.json`, with the checksum that this will have: a run that is done has its manifest.
Runs that were made before there were manifests have none, and are read unchecked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from matmix.checksums import Sums, difference, sum_of, sums
from matmix.files import Damaged
from matmix.folders import MARKER

NAME = "manifest.json"
VERSION = 1


def write_manifest(folder: Path, run: str, files: Sums) -> None:
    """Note the checksums of the files of a run, or of a study (`run` is the key of a run, "" for a study)."""
    from matmix.experiments.checkpoint import write_file  # needs safetensors, which reading does not

    said = {"version": VERSION, "run": run, "files": files, "sha256": _own(run, files)}
    write_file(folder / NAME, (json.dumps(said, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> tuple[str, Sums] | None:
    """The key of the run and its checksums; None where there is no manifest. A file of that name beside weights that
    lie elsewhere is somebody else's.

    Raises:
        Damaged: for a manifest in a folder of ours that does not have its own checksum.
    """
    path = Path(folder) / NAME
    try:
        found = json.loads(path.read_bytes())
        run, files = found["run"], found["files"]
        whole = found["version"] == VERSION and found["sha256"] == _own(run, files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if whole:
        return run, files
    if not (path.parent / MARKER).exists():
        return None
    raise Damaged(path, "the checksums of a run", "it does not have its own checksum")


def check_file(path: Path, data: bytes | None = None) -> None:
    """Raise `Damaged` where a file is not as the manifest beside it says; nothing where there is none, or it is silent.

    Args:
        path: of the file.
        data: what it holds, where that was read already.
    """
    found = read_manifest(path.parent)
    said = found[1].get(path.name) if found else None
    if said is None:
        return
    is_ = sums(path.parent, [path.name])[path.name] if data is None else sum_of(data)
    if is_ != said:
        raise Damaged(path, "the file that its run has finished", difference(is_, said))


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """JSON with the checksum of the rest in it."""
    plain = {name: value for name, value in data.items() if name != "sha256"}
    return {**plain, "sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def seal_is_broken(data: dict[str, Any]) -> bool:
    """Whether JSON has a checksum in it, and not the one of the rest."""
    return "sha256" in data and sealed(data) != data


def _own(run: str, files: Sums) -> str:
    return hashlib.sha256(json.dumps([run, files], sort_keys=True).encode()).hexdigest()
