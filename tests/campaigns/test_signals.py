"""Ctrl-C, once or more, as early as it may come, and a terminal that is closed: no traceback, and nothing lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from matmix.experiments.folder import Result
from tests.campaigns.processes import RUN, timed, train, whole
from tests.experiments.killing import wait_for_step
from tests.forked import SERVER, tell

CODE = "import matmix_command as m; print('on', flush=True); m.main()"


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.large)])
def test_while_the_library_is_imported(times):
    dice, ended = random.Random(times), []
    for number in (signal.SIGINT, signal.SIGHUP) * (times // 2):
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(dice.uniform(0.05, 3.0 if times > 2 else 0.4))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (128 + number, -number, 0) and "Traceback" not in said, said
        ended.append(process.returncode)
    assert 130 in ended or 129 in ended


def _train(config: dict, folder: str, log: str) -> None:
    import shlex

    from matmix.experiments import cli
    from matmix.experiments.run import RunConfig

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    words = shlex.split(RunConfig.from_json(config).command(folder))
    cli.main([*words[1:-1], folder])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "status"), [((signal.SIGHUP,) * 2, 129), ((signal.SIGINT,) * 3, 130), ((signal.SIGTERM,), 130)]
)
def test_while_it_trains(tmp_path, numbers, status):
    long = {**RUN, "recipe": {**RUN["recipe"], "steps": 400, "schedule_steps": 400}}
    folder, log = tmp_path / "run", tmp_path / "log"
    child = SERVER.Process(target=_train, args=(long, str(folder), str(log)))
    child.start()
    wait_for_step(folder, 8, child)
    for number in numbers:
        tell(child, number)
        time.sleep(0.02)
    child.join(60)
    assert child.exitcode == status and "Traceback" not in log.read_text(), log.read_text()
    stopped = Result.read(folder)
    assert stopped is None or stopped.status == "interrupted"
    assert list((folder / "checkpoints").glob("step-*"))
    if len(numbers) < 3:  # a second Ctrl-C waits for no checkpoint
        assert stopped is not None and (folder / "checkpoints" / f"step-{stopped.step:08d}").is_dir()
    timed(train, long, str(folder))
    timed(train, long, str(tmp_path / "whole"))
    assert whole(folder) == whole(tmp_path / "whole")


def _study(folder: str, log: str) -> None:
    import multiprocessing

    import matmix_command
    from matmix.experiments import workers

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    workers.get_context = lambda how: multiprocessing.get_context("fork")  # type: ignore[assignment]
    settings = ["--task.patch", "4", "--task.dim", "8", "--task.depth", "1", "--recipe.steps", "400",
                "--recipe.checkpoint-every", "50", "--recipe.log-every", "4"]  # fmt: skip
    sys.argv = ["matmix", "study", "digits", "--mixers", "pooling", "identity", "attention", "--seeds", "2",
                "--jobs", "2", *settings, "--out", folder]  # fmt: skip
    matmix_command.main()  # the third Ctrl-C may come when the command has ended


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "status"), [((signal.SIGHUP,) * 2, 129), ((signal.SIGINT,) * 3, 130)])
def test_a_study_with_workers(tmp_path, numbers, status):
    """Its workers save what they are at, whatever comes to the parent meanwhile."""
    child = SERVER.Process(target=_study, args=(str(tmp_path / "out"), str(tmp_path / "log")))
    child.start()
    until = time.monotonic() + 120
    while not list((tmp_path / "out").rglob("step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    for number in numbers:
        tell(child, number)
        time.sleep(0.05)
    child.join(120)
    said = (tmp_path / "log").read_text()
    assert child.exitcode == status and "Traceback" not in said, said
    again = SERVER.Process(target=_study, args=(str(tmp_path / "out"), str(tmp_path / "log")))
    again.start()
    again.join(300)
    assert again.exitcode == 0, (tmp_path / "log").read_text()
    assert len(list((tmp_path / "out").rglob("result.json"))) == 6
