"""Checkpoints that a crash cannot spoil: tensors in safetensors, the rest in JSON, never pickle.

A checkpoint is a folder `step-00000120/` with `tensors.safetensors` and `state.json`, which holds both checksums.
It is written under a temporary name, flushed to the disk and renamed, and only then is an older one removed; so at
every moment at least one whole checkpoint exists (once there was one). Reading verifies the checksums and falls back,
with a warning, to the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from matmix.files import read_json
from matmix.folders import remove, temporary

_TENSORS, _STATE, _TEMPORARY = "tensors.safetensors", "state.json", ".tmp-"
_FILES = rf"{re.escape(_TENSORS)}|{re.escape(_STATE)}"
_STEP = re.compile(r"step-(\d{8,})")


RUN_FILES = (
    ".matmix", ".lock", ".holder", "config.json", "environment.json", "metrics.jsonl", "result.json", "error.txt",
    "final.safetensors", "best.safetensors", "test_examples.npz", "manifest.json",
)  # fmt: skip
"""What a run writes beside its checkpoints; `run.py` says what each holds."""


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete, does not have its checksum, or is of another run."""


def save_checkpoint(root: Path, step: int, state: Any, *, keep: int = 2, run: str = "") -> Path:
    """Write nested dicts, lists, tuples, tensors and JSON values as checkpoint of `step`; keep the newest `keep`. `run`
    is the key of the run."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    tensors: dict[str, torch.Tensor] = {}
    plain = _encode(state, "", tensors)
    blob = save_tensors(tensors)
    document = {
        "step": step,
        "run": run,
        "sha256": {_TENSORS: _digest(blob), _STATE: _digest(_canonical([run, plain]))},
        "state": plain,
    }
    fresh, final = root / f"{_TEMPORARY}{step}-{os.getpid()}", _folder(root, step)
    fresh.mkdir()
    _write(fresh / _TENSORS, blob)
    _write(fresh / _STATE, json.dumps(document).encode())
    sync_folder(fresh)
    if final.exists():  # a damaged one of the same step: out of the way in one move
        final.rename(root / f"{_TEMPORARY}old-{step}-{os.getpid()}")
    fresh.rename(final)
    sync_folder(root)
    # Later steps are a damaged future that a resumed run has gone back from.
    steps = checkpoint_steps(root)
    past = [other for other in steps if other <= step]
    for other in set(steps) - set(past[:keep]):
        _remove(_folder(root, other))
    _sweep(root)
    return final


def remove_checkpoints(root: Path) -> None:
    """Remove all checkpoints, by the names that they have; warns of what else is there, which stays."""
    left = remove(root, rf"({_STEP.pattern}|{re.escape(_TEMPORARY)}[\w-]+)/({_FILES})")
    if left:
        named = ", ".join(map(str, left[:3])) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        warnings.warn(f"{root} stays: {named} is not matmix's, or cannot be removed", stacklevel=2)


def remove_run(folder: Path) -> None:
    """Remove the folder of a run and what runs write into it; files of others stay."""
    remove(folder, rf"({'|'.join(map(re.escape, RUN_FILES))}|{re.escape(_TEMPORARY)}.+|tensorboard/.+|"
                   rf"checkpoints/[^/]+/({_FILES}))")  # fmt: skip


def load_checkpoint(root: Path, step: int, run: str = "") -> Any:
    """The state of one checkpoint; raises `DamagedCheckpoint` when it is not whole, or says that it is of another run
    than the one of this key (those of older versions do not say)."""
    folder = _folder(root, step)
    try:
        document = read_json(folder / _STATE, "the state of a checkpoint", {"state": Any, "sha256": dict[str, str]})
        blob = (folder / _TENSORS).read_bytes()
        plain, sums = document["state"], document["sha256"]
        if _digest(blob) != sums[_TENSORS]:
            raise DamagedCheckpoint(f"{_TENSORS} does not have its checksum")
        said = [document["run"], plain] if "run" in document else plain  # older versions did not note the run
        if _digest(_canonical(said)) != sums[_STATE] or document["step"] != step:
            raise DamagedCheckpoint(f"{_STATE} does not have its checksum")
        if run and (theirs := document.get("run", "")) not in ("", run):
            raise DamagedCheckpoint(f"it is of another run, {theirs}, and this one is {run}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error
    return _decode(plain, load_tensors(blob))


def load_latest(root: Path, run: str = "", check: Callable[[Any], None] = lambda state: None) -> tuple[int, Any] | None:
    """Step and state of the newest checkpoint that is whole and of this run, or None. Warns for each one that it passes
    over; so does `check`, by raising `DamagedCheckpoint`."""
    for step in checkpoint_steps(root):
        try:
            state = load_checkpoint(root, step, run)
            check(state)
            return step, state
        except DamagedCheckpoint as error:
            warnings.warn(
                f"checkpoint {_folder(root, step)} is damaged, or not of this run ({error}); using the one before it",
                stacklevel=2,
            )
    return None


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    fresh = temporary(path)
    try:
        _write(fresh, data)
        os.replace(fresh, path)
    except BaseException:  # a full disk is not filled further
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], run: str = "") -> None:
    """Write named tensors (a `state_dict`) to one safetensors file, all or nothing; `run` is the key of their run."""
    about = {"run": run} if run else None
    write_file(path, save_tensors({name: _plain(tensor) for name, tensor in tensors.items()}, about))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names made, renamed or removed in it) to the disk."""
    if os.name == "nt":  # Windows opens no folders, and keeps their entries without being asked
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def checkpoint_steps(root: Path) -> list[int]:
    """Steps that have a checkpoint, newest first; what has another name is somebody else's."""
    found = [int(match[1]) for path in root.glob("step-*") if path.is_dir() and (match := _STEP.fullmatch(path.name))]
    return sorted((step for step in found if _folder(root, step).is_dir()), reverse=True)


def _sweep(root: Path) -> None:
    """Remove what writers that were killed left behind (the run's lock admits one writer at a time)."""
    for left in root.glob(f"{_TEMPORARY}*"):
        _remove(left)


def _remove(folder: Path) -> None:
    """Remove one checkpoint, or what is there of it; files of others stay."""
    remove(folder, _FILES)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(plain: Any) -> bytes:
    return json.dumps(plain, sort_keys=True).encode()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    # Tied tensors share storage, which safetensors refuses; each gets its own copy.
    return tensor.detach().cpu().contiguous().clone()


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for `value`; its tensors go to `tensors` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = _plain(value)
        return {"<tensor>": path}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("<") for key in value):
            return {key: _encode(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return {"<dict>": [[key, _encode(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        items = [_encode(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"<tuple>": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"<dtype>": str(value).removeprefix("torch.")}
    raise TypeError(f"a checkpoint holds tensors and JSON values; {path or 'the state'} is a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "<tensor>" in value:
        return tensors[value["<tensor>"]]
    if "<dtype>" in value:
        return getattr(torch, value["<dtype>"])
    if "<dict>" in value:
        return {key: _decode(item, tensors) for key, item in value["<dict>"]}
    if "<tuple>" in value:
        return tuple(_decode(item, tensors) for item in value["<tuple>"])
    return {key: _decode(item, tensors) for key, item in value.items()}
