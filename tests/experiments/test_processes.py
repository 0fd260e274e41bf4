"""Runs over processes: two are as one, a stopped one goes on bit for bit, and with another number up to rounding."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from matmix.experiments.run import Result, RunConfig, execute, read_metrics
from tests.experiments.steps import VQ

CONFIG = RunConfig(
    f"{Path(__file__).with_name('stops.py')}:Stops", VQ, 0, {"patch": 4, "dim": 8, "depth": 1},
    {
        "steps": 12, "batch_size": 32, "log_every": 4, "eval_every": 6, "checkpoint_every": 5,
        # Validation has 359 examples: one is left for the third batch, and the second process has none of it.
        "eval_batch_size": 179,
        "groups": ["position head.* lr=0.02 weight_decay=0.3"],
    },
)  # fmt: skip


def in_two(folder: Path, stop_at: str = "", config: RunConfig = CONFIG) -> str:
    """`torchrun` with two CPU processes; the status of the run."""
    words = shlex.split(config.command(folder))[1:-1]
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "matmix.experiments.cli")
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "STOP_AT": stop_at,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launch, *words, str(folder), "--quiet"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode == 0) != bool(stop_at), done.stderr[-3000:]
    result = Result.read(folder)
    assert result is not None
    return result.status


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(root: Path) -> Result:
    """The run in one process, and in two."""
    assert in_two(root / "two") == "finished"
    return execute(CONFIG, root / "one")


@pytest.fixture(scope="module")
def stopped(root: Path) -> Path:
    """Stopped within the first epoch in two processes after step 8; the newest checkpoint is that of step 5."""
    assert in_two(root / "stopped", "8") == "failed"
    return root / "stopped"


def near(folder: Path, one: Path) -> None:
    for name in ("final", "best"):
        found, expected = (load_file(where / f"{name}.safetensors") for where in (folder, one))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(whole: Result, root: Path):
    two = Result.read(root / "two")
    assert whole.test == pytest.approx(two.test, rel=1e-3) and whole.groups == two.groups and not whole.notes
    assert two.notes == ("2 processes: the command gives the same with as many, with others up to rounding",)
    assert {"tensors": 3, "parameters": 122, "lr": 0.02, "weight_decay": 0.3} in two.groups
    near(root / "two", root / "one")
    logs = [[[line[key] for key in ("step", "split")] for line in read_metrics(root / way)] for way in ("one", "two")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_two_processes_train_compiled_as_one_eagerly(whole: Result, root: Path):
    compiled = dataclasses.replace(CONFIG, recipe={**CONFIG.recipe, "compile": True})
    assert in_two(root / "compiled", config=compiled) == "finished"
    found = Result.read(root / "compiled")
    assert found.test == pytest.approx(whole.test, rel=1e-3) and "torch.compile" in found.notes[0]
    near(root / "compiled", root / "one")


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(whole: Result, stopped: Path, root: Path):
    again = shutil.copytree(stopped, root / "again")
    assert in_two(again) == "finished" and len(Result.read(again).notes) == 1
    for name in ("metrics.jsonl", "final.safetensors", "best.safetensors"):
        assert (again / name).read_bytes() == (root / "two" / name).read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_is_noted(whole: Result, stopped: Path, root: Path, monkeypatch):
    fewer = execute(CONFIG, shutil.copytree(stopped, root / "fewer"))
    assert fewer.status == "finished", fewer.error
    assert "2 from step 0 on, 1 from step 5 on: equal to a run with one number of them up to rounding" in fewer.notes[0]
    monkeypatch.setenv("STOP_AT", "8")
    assert execute(CONFIG, root / "more").status == "failed"
    assert in_two(root / "more") == "finished"
    assert "1 from step 0 on, 2 from step 5 on" in Result.read(root / "more").notes[0]
    for way in ("fewer", "more"):
        near(root / way, root / "one")
        losses = [
            [line["loss"] for line in read_metrics(root / name) if line["split"] == "train"] for name in (way, "one")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
