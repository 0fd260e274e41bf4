"""Workers that share a folder and nothing else: no run is done twice, none is lost with its worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from matmix.experiments import lease as settings
from matmix.experiments import workers
from matmix.experiments.folder import Result, write_json
from matmix.experiments.lease import Watch, numbers
from matmix.experiments.run import RunError, execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from matmix.folders import claim

STUDY = """
import sys
from matmix.experiments import lease
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
recipe = {"steps": 160, "eval_every": 80, "checkpoint_every": 20, "log_every": 20}
study = Study("s", (StudyTask("digits", {"dim": 8, "depth": 1}, recipe),), ("pooling", "identity"), seeds=(0, 1))
if __name__ == "__main__":
    lease.BEAT, lease.EXPIRY = 0.2, 2.0
    run_study(study, sys.argv[1], worker=len(sys.argv) > 2, jobs=1, quiet=True)
"""


def test_a_lease_is_held_by_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "BEAT", 0.02)
    monkeypatch.setattr(settings, "EXPIRY", 0.3)
    mine, other, third = Watch(), Watch(), Watch()
    lease = mine.take(tmp_path)
    assert lease is not None and lease.held() and other.take(tmp_path) is None
    write_json(lease.begin() / "metrics.jsonl", "mine")
    time.sleep(0.4)  # longer than the expiry: it gives signs of life
    assert other.take(tmp_path) is None
    lease._ended.set()  # as a process that is stopped
    lease._thread.join()
    assert other.take(tmp_path) is None  # it was alive a moment ago, as far as this one knows
    time.sleep(0.4)
    assert third.take(tmp_path) is None  # which looks for the first time
    taken = other.take(tmp_path)
    assert taken is not None and taken.held() and not lease.held() and not lease.publish()
    assert (taken.begin() / "metrics.jsonl").exists() and taken.attempt != lease.attempt
    taken.release()
    again = third.take(tmp_path)
    assert again is not None and sorted(numbers(tmp_path)) == [1, 2, 3]
    again.begin()
    assert again.publish()
    again.release(done=True)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", ".matmix"}


def test_a_run_that_failed_before_is_published_with_its_tracker(tmp_path: Path) -> None:
    for number, status in enumerate(("failed", "finished")):
        lease = Watch().take(tmp_path)
        assert lease is not None
        events = lease.begin() / "tensorboard"
        events.mkdir()
        (events / f"events.{number}").write_text(status)
        (lease.attempt / "result.json").write_text(status)
        assert lease.publish() and not lease.attempt.exists()
        lease.release(done=status == "finished")
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"events.0", "events.1"}
    assert (tmp_path / "result.json").read_text() == "finished"


def test_a_worker_passes_over_what_is_held(tmp_path: Path, monkeypatch) -> None:
    recipe = {"steps": 1, "eval_every": 1, "batch_size": 4}
    study = Study("s", (StudyTask("digits", {"dim": 4, "depth": 1}, recipe),), ("identity",), seeds=(0, 1))
    first, second = study.runs()
    claim(tmp_path, "study")
    lease = Watch().take(tmp_path / first.folder)
    assert lease is not None
    with pytest.raises(RunError, match=f"in use by the worker {os.getpid()} on"):
        execute(first.config, tmp_path / first.folder)
    with pytest.raises(ValueError, match=r"one run at a time, got worker=True .*jobs=2"):
        run_study(study, tmp_path, worker=True, jobs=2)
    waits = []

    def wait(seconds: float) -> None:
        """Nothing but the held run is left then; its holder lets go."""
        assert Result.read(tmp_path / first.folder) is None and Result.read(tmp_path / second.folder) is not None
        waits.append(seconds)
        lease.release()

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=wait))
    assert run_study(study, tmp_path, worker=True, quiet=True).counts == {"finished": 2}
    assert waits == [30]
    assert not list(tmp_path.rglob("lease-*")) and not list(tmp_path.rglob(".attempt-*"))


@pytest.mark.slow
def test_one_worker_is_killed_and_one_stopped(tmp_path: Path) -> None:
    """The same results as of one process, bit for bit; the stopped one goes on when all is done, and spoils nothing."""
    file = tmp_path / "work.py"
    file.write_text(STUDY)
    subprocess.run([sys.executable, str(file), str(tmp_path / "alone")], check=True)
    out = tmp_path / "shared"
    three = [subprocess.Popen([sys.executable, str(file), str(out), "worker"]) for _ in range(3)]
    try:
        until = time.monotonic() + 50
        while len(list(out.rglob("step-*"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        three[0].kill()
        os.kill(three[1].pid, signal.SIGSTOP)
        assert three[2].wait(60) == 0
        os.kill(three[1].pid, signal.SIGCONT)
        assert three[1].wait(60) == 0
    finally:
        for worker in three:
            worker.kill()
            worker.wait()
    found = sorted(path.relative_to(out).parent for path in out.rglob("result.json"))
    assert len(found) == 4
    for folder in found:
        mine, alone = (Result.read(root / folder) for root in (out, tmp_path / "alone"))
        assert mine is not None and alone is not None and (mine.test, mine.val) == (alone.test, alone.val)
        for name in ("metrics.jsonl", "best.safetensors", "final.safetensors"):
            assert (out / folder / name).read_bytes() == (tmp_path / "alone" / folder / name).read_bytes()
