"""A run that is killed at any moment ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import TINY, outputs, run, wait_for_step
from safetensors.torch import load

from matmix.experiments.checkpoint import load_checkpoint, save_checkpoint
from matmix.experiments.run import Result, RunConfig
from tests.forked import start_command, tell
from tests.sequence import written


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return outputs(folder)


def test_the_seed_matters(tmp_path, whole):
    """Equality below means something: another seed gives other weights."""
    assert run(tmp_path, {**TINY, "seed": 4}) == 0
    mine, theirs = (load(data["final.safetensors"]) for data in (outputs(tmp_path), whole))
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs)


def chain(folder: Path, plan: list[tuple[str, int]]) -> int:
    """Kill the run once for each entry of the plan, then let it finish; how often it really was killed."""
    killed = sum(run(folder, die=die) == -signal.SIGKILL for die in plan)
    assert run(folder) == 0
    return killed


def draw(seed: int, deaths: int) -> list[tuple[str, int]]:
    dice = random.Random(seed)
    return [(kind, dice.randint(1, 25)) for kind in dice.choices(("step", "file"), k=deaths)]


@pytest.mark.parametrize(
    "plan",
    [[("step", 18), ("step", 1), ("step", 30)], pytest.param(draw(0, 4), marks=pytest.mark.slow)],
    ids=["steps", "random"],
)
def test_killed_runs_end_the_same(tmp_path, whole, plan):
    assert chain(tmp_path, plan) == len(plan)
    assert outputs(tmp_path) == whole


@pytest.mark.parametrize("operation", [7, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_during_a_checkpoint(tmp_path, whole, operation):
    assert chain(tmp_path, [("step", 10), ("file", operation)]) == 2
    assert outputs(tmp_path) == whole


def test_killed_in_the_middle_of_an_epoch_of_buckets(tmp_path):
    """Packed rows of length buckets, eight steps an epoch: killed in the second one, two steps after a checkpoint, and
    again at once."""
    config = {
        "task": "listops", "mixer": "attention(head_dim=4, rotary=True)", "seed": 1,
        "options": {
            "length": 32, "min_length": 4, "max_length": 30, "max_depth": 3, "max_args": 3, "train_examples": 64,
            "val_examples": 16, "test_examples": 8, "dim": 8, "depth": 1, "dropout": 0.1, "buckets": True,
            "pad": "packed", "cache": str(tmp_path / "cache"),
        },
        "recipe": {
            "steps": 20, "batch_size": 8, "accumulate": 2, "log_every": 4, "eval_every": 10, "checkpoint_every": 3,
            "groups": ["head.* lr=0.01 weight_decay=0.3"],
        },
    }  # fmt: skip
    assert run(tmp_path / "whole", config) == 0
    for die in (("step", 12), ("step", 1)):
        assert run(tmp_path / "again", config, die=die) == -signal.SIGKILL
    assert run(tmp_path / "again", config) == 0
    assert outputs(tmp_path / "again") == outputs(tmp_path / "whole")


@pytest.mark.slow
def test_killed_in_the_middle_of_a_stream(tmp_path, monkeypatch):
    """Masked words of a stream of 60 texts, over its end: killed two steps after a checkpoint, and again at once."""
    lines = [json.dumps({"text": text}) for text in written.sentences(60)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text("\n".join(lines) + "\n")
    config = {
        "task": "mlm", "mixer": "attention(head_dim=4)", "seed": 1,
        "options": {
            "data": str(tmp_path / "texts"), "streaming": True, "held_out": 5, "length": 10, "dim": 8, "depth": 1,
            "tokens": str(written.tokenizer(tmp_path / "tokenizer.json")), "dropout": 0.1,
        },
        "recipe": {"steps": 20, "batch_size": 8, "log_every": 4, "eval_every": 10, "checkpoint_every": 3},
    }  # fmt: skip
    assert run(tmp_path / "whole", config) == 0
    for die in (("step", 12), ("step", 1)):
        assert run(tmp_path / "again", config, die=die) == -signal.SIGKILL
    assert run(tmp_path / "again", config) == 0
    assert outputs(tmp_path / "again") == outputs(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(1, 45))
def test_killed_at_every_file_operation(tmp_path, whole, operation):
    assert chain(tmp_path, [("file", operation)]) == 1
    assert outputs(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_killed_at_random(tmp_path, whole, seed):
    chain(tmp_path, draw(seed, 6))
    assert outputs(tmp_path) == whole


# ------------------------------------------------------------------ the command line, from outside


def start(folder: Path) -> Any:
    words = shlex.split(RunConfig.from_json(TINY).command(folder))
    assert words[:3] == ["matmix", "train", "digits"] and words[-2] == "--out"
    return start_command([*words[1:-1], str(folder)], folder.with_suffix(".log"))


def test_command_killed_and_interrupted(tmp_path, whole):
    """SIGKILL, then Ctrl-C, then to the end: exit codes, the message, and the same bytes."""
    folder = tmp_path / "run"
    first = start(folder)
    wait_for_step(folder, 8, first)
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL

    second = start(folder)
    wait_for_step(folder, 24, second)
    tell(second, signal.SIGINT)
    second.join(60)
    said = folder.with_suffix(".log").read_text()
    assert second.exitcode == 130, said
    assert "goes on from there" in said and "Traceback" not in said
    stopped = Result.read(folder)
    assert stopped is not None and stopped.status == "interrupted" and 24 <= stopped.step < 60
    assert (folder / "checkpoints" / f"step-{stopped.step:08d}").is_dir()

    third = start(folder)
    third.join(120)
    assert third.exitcode == 0, folder.with_suffix(".log").read_text()
    assert outputs(folder) == whole
    done = Result.read(folder)
    assert done is not None and done.status == "finished" and not (folder / "checkpoints").exists()


# ------------------------------------------------------------------ checkpoints alone


def test_a_killed_writer_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """At whatever operation the writer stops, a whole checkpoint is there."""
    from matmix.experiments.checkpoint import load_latest

    class Killed(BaseException):
        pass

    def at(operation: int) -> int | None:
        root = tmp_path / str(operation)
        for step in (1, 2):
            save_checkpoint(root, step, {"weights": torch.full((3,), float(step))})
        left = operation
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (os, "rmdir")):
                real = getattr(owner, name)

                def mortal(*args, real=real, **options):
                    nonlocal left
                    left -= 1
                    if left == 0:
                        raise Killed
                    return real(*args, **options)

                patch.setattr(owner, name, mortal)
            try:
                save_checkpoint(root, 3, {"weights": torch.full((3,), 3.0)})
            except Killed:
                pass
            else:
                return None
        found = load_latest(root)
        assert found is not None
        step, state = found
        assert torch.equal(state["weights"], torch.full((3,), float(step)))
        save_checkpoint(root, 4, {"weights": torch.zeros(3)})
        assert not list(root.glob(".tmp-*")) and load_checkpoint(root, 4) is not None
        return step

    steps = []
    while (found := at(len(steps) + 1)) is not None:
        steps.append(found)
    assert set(steps) == {2, 3} and steps == sorted(steps) and len(steps) >= 7
