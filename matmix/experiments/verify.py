"""Is what was written still there? Every file of a run, a study, a saved surgery or a tree of them, against the
checksums it was given.

Nothing is written, repaired or imported. What has no checksum (runs of older versions, trackers' files) is said to be
unchecked; `index.jsonl` is made anew wherever it does not fit, so nothing can be wrong with it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matmix.checksums import damages, difference, sum_of, sums
from matmix.experiments.checkpoint import DamagedCheckpoint, checkpoint_steps, load_checkpoint
from matmix.experiments.config import key_of
from matmix.experiments.folder import CONFIG, CONFIG_KEYS, Result, read_metrics
from matmix.experiments.log import check_log
from matmix.experiments.manifest import NAME as MANIFEST
from matmix.experiments.manifest import read_manifest, seal_is_broken
from matmix.experiments.report.folder import NAME as REPORT
from matmix.experiments.report.folder import files_of
from matmix.experiments.study import Study
from matmix.files import Damaged, read_json
from matmix.folders import MARKER, NotOurs, check_ours, marker

WRONG = ("damaged", "missing")


@dataclass(frozen=True)
class Finding:
    """What is said of one file, or of a whole folder: "ok", "damaged", "missing" or "unchecked"."""

    status: str
    path: Path
    text: str = ""
    repair: str = ""
    """The command that mends it; only where something is wrong."""


def folders(root: Path) -> list[Path]:
    """The folders of runs, studies and what else was saved (surgeries, forecasters) in a folder, itself included.

    Raises:
        ValueError: if there is none.
    """
    if not root.is_dir():
        raise ValueError(f"verify: there is no folder {root}")
    found = []
    for above, below, _ in os.walk(root):
        folder = Path(above)
        below[:] = sorted(name for name in below if name != REPORT or not (folder / name / MARKER).exists())
        sort = _sort(folder)
        if sort:
            found.append(folder)
        if sort == "run":
            below.clear()
    if not found:
        raise ValueError(f"verify: {root} holds no run, no study and nothing else that matmix saved")
    return found


def verify(folder: Path, study: Path | None = None) -> list[Finding]:
    """What is wrong in the folder of a run, of a study (not in its runs) or of what else was saved; one finding where
    nothing is.

    Args:
        folder: one of `folders`.
        study: the folder of the study that a run is of.
    """
    sort = _sort(folder)
    looks = _of_run(folder, study) if sort == "run" else _of_study(folder) if sort == "study" else _of_saved(folder)
    found = list(looks)
    return [one for one in found if one.status in WRONG] or found[-1:]


def _of_run(folder: Path, study: Path | None) -> Iterator[Finding]:
    again = _again(folder, study)
    anew = f"rm -r {shlex.quote(str(folder))} && {again}"

    def wrong(name: str, text: str, repair: str = anew) -> Finding:
        status = "missing" if text == "missing" else "damaged"
        return Finding(status, folder / name, "" if status == "missing" else text, repair)

    said: dict[str, Any] = {}
    try:
        said = check_ours(folder, "run", lambda folder: True) or {}
    except NotOurs as error:
        yield wrong(MARKER, str(error), f"rm {shlex.quote(str(folder / MARKER))}")
    try:
        manifest = read_manifest(folder)
    except Damaged as error:
        yield wrong(MANIFEST, str(error))
        manifest = None
    try:
        config = read_json(folder / "config.json", CONFIG, CONFIG_KEYS)
        key = key_of(config)
        if said.get("run", key) != key:
            yield wrong("config.json", f"{MARKER} says that this is the run {said['run']}, and it is that of {key}")
        if manifest is not None and manifest[0] != key:
            yield wrong(MANIFEST, f"it is that of the run {manifest[0]}, and this one is {key}")
            return
        result = Result.read(folder)
    except FileNotFoundError:
        yield wrong("config.json", "missing")
        return
    except Damaged as error:
        yield wrong(error.path.name, str(error))
        return
    steps = checkpoint_steps(folder / "checkpoints")
    if result is None or not result.done:
        yield from (wrong(*each, again) for each in _of_checkpoints(folder, key, steps))
        if manifest is not None and not steps:
            yield wrong("result.json", "missing")
        status = "unfinished" if result is None else f"{result.status} at step {result.step}"
        yield Finding("ok", folder, f"{status}, {len(steps)} checkpoint{'s' * (len(steps) != 1)}")
        return
    if manifest is None and result.key:
        yield wrong(MANIFEST, "missing")
    elif manifest is None:
        yield Finding("unchecked", folder, f"{result.status} by an older version, which kept no checksums")
    else:
        yield from (wrong(*each) for each in damages(folder, manifest[1]).items())
        yield Finding("ok", folder, result.status)


def _of_checkpoints(folder: Path, key: str, steps: list[int]) -> Iterator[tuple[str, str]]:
    """Names of checkpoints, and of the log, that a run cannot go on from."""
    path = folder / "metrics.jsonl"
    for step in steps:
        try:
            state = load_checkpoint(folder / "checkpoints", step, key)
        except DamagedCheckpoint as error:
            yield f"checkpoints/step-{step:08}", str(error)
            continue
        try:
            if "log" in state:
                check_log(path, state["log"])
        except DamagedCheckpoint as error:
            yield path.name, str(error) if path.exists() else "missing"
            return
    if path.exists():
        try:
            read_metrics(folder)
        except Damaged as error:
            yield path.name, str(error)


def _of_study(folder: Path) -> Iterator[Finding]:
    plan, again = folder / "study.json", f"matmix report {shlex.quote(str(folder))}"
    said: dict[str, Any] = {}
    try:
        said = check_ours(folder, "study", lambda folder: True) or {}
    except NotOurs as error:
        yield Finding("damaged", folder / MARKER, str(error), f"rm {shlex.quote(str(folder / MARKER))}")
    if plan.exists() or said:
        yield _of_plan(plan, said.get("study"))
    for path in sorted((folder / "sessions").glob("*.json")):
        try:
            if seal_is_broken(read_json(path, "the notes of a start of a study", {})):
                raise Damaged(path, "the notes of a start of a study", "it does not have its checksum")
        except Damaged as error:
            yield Finding("damaged", path, str(error), f"rm {shlex.quote(str(path))}")
    report = folder / REPORT
    try:
        files = files_of(report) if report.is_dir() else {}
    except NotOurs as error:
        yield Finding("damaged", report / MARKER, str(error), f"rm {shlex.quote(str(report / MARKER))} && {again}")
        files = {}
    for name, wanted in files.items():
        if not (report / name).exists():
            yield Finding("missing", report / name, "", again)
        elif wanted and (is_ := sums(report, [name])[name]) != wanted:
            yield Finding("damaged", report / name, difference(is_, wanted), again)
    yield Finding("ok" if said.get("study") else "unchecked", folder, "the plan, the notes and the report of a study")


def _of_saved(folder: Path) -> Iterator[Finding]:
    again = f"save it again, in {shlex.quote(str(folder))}"
    try:
        said = marker(folder) or {}
    except NotOurs as error:
        yield Finding("damaged", folder / MARKER, str(error), again)
        return
    for name, how in damages(folder, said.get("files", {})).items():
        status = "missing" if how == "missing" else "damaged"
        yield Finding(status, folder / name, "" if how == "missing" else how, again)
    yield Finding("ok" if "files" in said else "unchecked", folder, str(said.get("kind", "")))


def _of_plan(path: Path, wanted: dict[str, Any] | None) -> Finding:
    again = _command(path.parent) or f"the command that made it, with --out {shlex.quote(str(path.parent))}"
    try:
        Study.from_json(read_json(path, "a study", {}))
        is_ = sum_of(path.read_bytes())
    except FileNotFoundError:
        return Finding("missing", path, "", again)
    except (ValueError, TypeError, AttributeError) as error:
        return Finding("damaged", path, str(error), again)
    if wanted and is_ != wanted:
        return Finding("damaged", path, difference(is_, wanted), again)
    return Finding("ok", path)


def _sort(folder: Path) -> str:
    """What a folder is looked at as: "run", "study", "saved" (once, as a surgery is); "" for one that is not ours."""
    kind = _kind(folder)
    if kind:
        return kind if kind in ("run", "study") else "saved"
    if (folder / "config.json").exists() and _is_config(folder / "config.json"):
        return "run"
    if (folder / "study.json").exists() or (folder / REPORT / MARKER).exists():
        return "study"
    return "saved" if (folder / MARKER).exists() else ""


def _kind(folder: Path) -> str:
    """What the marker of a folder says that it is; "" where none can be read."""
    try:
        return str((marker(folder) or {}).get("kind", ""))
    except NotOurs:
        return ""


def _is_config(path: Path) -> bool:
    """Whether a file is the configuration of a run, or what is left of one: other programs have files of this name."""
    beside = (MANIFEST, "result.json", "metrics.jsonl", MARKER)
    try:
        read_json(path, CONFIG, CONFIG_KEYS)
    except Damaged:
        return any((path.parent / name).exists() for name in beside)
    return True


def _again(folder: Path, study: Path | None) -> str:
    """The command that does a run, in its folder."""
    if study is not None:
        place = shlex.quote(str(study))
        return f"matmix study {shlex.quote(str(study / 'study.json'))} --out {place}"
    for name, key in (("result.json", "reproduce"), ("environment.json", "reproduce"), ("environment.json", "command")):
        words = _words(folder / name, key)
        if words[:2] == ["matmix", "train"]:
            at = words.index("--out") if "--out" in words else len(words)
            return shlex.join([*words[:at], "--out", str(folder), *words[at + 2 :]])
    return f"the command that made it, with --out {shlex.quote(str(folder))}"


def _command(study: Path) -> str:
    """The command that last started a study."""
    for path in sorted((study / "sessions").glob("*.json"), reverse=True):
        words = _words(path, "command")
        if words[:2] == ["matmix", "study"]:
            return shlex.join(words)
    return ""


def _words(path: Path, key: str) -> list[str]:
    """A command in a file, in words; whoever reads it quotes them again, so that it stays one command."""
    try:
        return shlex.split(json.loads(path.read_bytes())[key])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
