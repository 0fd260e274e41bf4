"""Every file of a run and a study, changed in every way: `matmix verify` or whoever reads it names it, or the same
command ends with the same bytes all the same.

A case is a copy of a finished run, of one that was stopped, or of a study with its report, in which one file is
changed: a bit of it, its length, its place (that of another run), its being there.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from matmix.experiments import trainer
from matmix.experiments.report import write_report
from matmix.experiments.run import RunConfig, execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from matmix.experiments.verify import WRONG, folders, verify

SMALL = {"patch": 4, "dim": 4, "depth": 1}
QUICK = {"steps": 4, "batch_size": 8, "log_every": 1, "eval_every": 2, "checkpoint_every": 1}
WAYS = ("flip", "truncate", "empty", "swap", "delete")


def config(seed: int) -> RunConfig:
    return RunConfig("digits", "identity", seed, SMALL, QUICK)


def study(seed: int) -> Study:
    return Study(f"s{seed}", (StudyTask("digits", SMALL, QUICK),), ("identity", "fnet"), (seed,))


class Kind(NamedTuple):
    """One thing that is harmed: where a whole one stands, another one, and what is done to go on with a copy."""

    whole: Path
    other: Path
    again: Callable[[Path], object]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("corruption")
    for seed in (0, 1):
        execute(config(seed), root / f"run-{seed}")
        assert run_study(study(seed), root / f"study-{seed}", jobs=1, quiet=True).complete
        write_report(root / f"study-{seed}", matrices=False, pictured=0)
        left, real = 4, trainer.accumulate

        def stop(*arguments, real=real):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "accumulate", stop)
            assert execute(config(seed), root / f"stopped-{seed}").status == "failed"
    return {
        "run": Kind(root / "run-0", root / "run-1", lambda folder: execute(config(0), folder)),
        "stopped": Kind(root / "stopped-0", root / "stopped-1", lambda folder: execute(config(0), folder)),
        "study": Kind(
            root / "study-0", root / "study-1", lambda folder: run_study(study(0), folder, jobs=1, quiet=True)
        ),
    }


def outputs(folder: Path) -> dict[str, bytes]:
    """What must not depend on what happened: weights, logs, scores of examples."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in ("*.safetensors", "metrics.jsonl", "test_examples.npz")
        for path in folder.rglob(pattern)
        if "checkpoints" not in path.parts
    }


def harmed(path: Path, other: Path, way: str, dice: random.Random) -> bool:
    """Change a file in place; False where that changes nothing."""
    before = path.read_bytes()
    if way == "delete":
        path.unlink()
        return True
    if way == "flip" and before:
        changed = bytearray(before)
        changed[dice.randrange(len(before))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
    elif way == "truncate" and before:
        path.write_bytes(before[: dice.randrange(len(before))])
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "swap" and other.is_file():
        shutil.copyfile(other, path)
    return path.read_bytes() != before


def counterpart(kind: Kind, name: str) -> Path:
    """The file of the same sort in the other run or study, whose names have another seed or time in them."""
    found = kind.other / name.replace("seed-0", "seed-1")
    beside = sorted(found.parent.glob(f"*{found.suffix}")) if found.parent.is_dir() else []
    return found if found.is_file() or not beside else beside[0]


def outcome(kind: Kind, name: str, way: str, dice: random.Random, copy: Path) -> str:
    """What became of it: "found" by `verify`, "named" by who reads it, "harmless" by bytes, "nothing" where the file
    stayed as it was; else what was wrong and nobody said."""
    shutil.copytree(kind.whole, copy)
    path = copy / name
    if not harmed(path, counterpart(kind, name), way, dice):
        return "nothing"
    said = [one for folder in folders(copy) for one in verify(folder) if one.status in WRONG]
    if said:
        assert all(one.repair for one in said)
        # A swapped marker is told by the configuration beside it, a checkpoint by its folder.
        near = {
            path,
            path.parent,
            path.with_name("config.json"),
            path.with_name("study.json"),
            path.with_name(".matmix"),
        }
        of_marker = path.name == ".matmix" and any(one.path.parent == path.parent for one in said)
        return "found" if of_marker or any(one.path in near for one in said) else f"only {said[0].path.name} was named"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            kind.again(copy)
        except Exception as error:
            return "named" if path.name in str(error) else f"{type(error).__name__}: {error}"
    wanted, got = outputs(REFERENCE[kind.whole.name.partition("-")[0]]), outputs(copy)
    if wanted == got:
        return "harmless"
    return "named" if any(path.name in str(one.message) for one in caught) else "the bytes differ, and nobody said so"


REFERENCE: dict[str, Path] = {}


def campaign(kinds: dict[str, Kind], root: Path, seed: int, rounds: int, most: int | None) -> Counter[str]:
    dice = random.Random(seed)
    REFERENCE.update({"run": kinds["run"].whole, "stopped": kinds["run"].whole, "study": kinds["study"].whole})
    cases = [
        (word, path.relative_to(kind.whole).as_posix(), way)
        for word, kind in kinds.items()
        for path in sorted(kind.whole.rglob("*"))
        if path.is_file()
        for way in WAYS
    ] * rounds
    dice.shuffle(cases)
    counts: Counter[str] = Counter()
    wrong = []
    for word, name, way in cases:
        if most is not None and counts.total() >= most:
            break
        copy = root / "copy"
        said = outcome(kinds[word], name, way, dice, copy)
        shutil.rmtree(copy)
        if said == "nothing":
            continue
        counts[said] += 1
        if said not in ("found", "named", "harmless"):
            wrong.append(f"{way} {word}/{name}: {said}")
    print(f"{counts.total()} corruptions: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    return counts


def test_some_corruptions(kinds, tmp_path):
    counts = campaign(kinds, tmp_path, 0, 1, 24)
    assert counts.total() == 24 and counts["found"] >= 12


@pytest.mark.large
def test_every_corruption(kinds, tmp_path):
    assert campaign(kinds, tmp_path, 1, 3, None).total() >= 300


def test_whole_ones_are_whole(kinds):
    """Nothing is found where nothing was done."""
    for kind in kinds.values():
        found = [one for folder in folders(kind.whole) for one in verify(folder)]
        assert found and all(one.status == "ok" for one in found), found
