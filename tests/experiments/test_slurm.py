"""Workers handed to a scheduler: submitit's executor of this machine stands for Slurm's."""

from __future__ import annotations

import json
import signal
import time

import pytest

from matmix.experiments.cli import main
from matmix.experiments.run import Result
from matmix.experiments.runner import run_study
from tests.experiments.test_study import study

pytest.importorskip("submitit")


@pytest.mark.slow
def test_workers_do_a_study(tmp_path, monkeypatch, capsys):
    """Two workers, of which one is told that its time is over and is begun again: the weights of one process."""
    import psutil  # which accelerate brings
    from submitit.local.local import LocalExecutor

    jobs = []
    begin = LocalExecutor._submit_command

    def noted(self, command):
        jobs.append(begin(self, command))
        return jobs[-1]

    monkeypatch.setattr(LocalExecutor, "_submit_command", noted)
    monkeypatch.setenv("NAP", "0.3")
    grid, out = study("slow", seeds=(0, 1)), tmp_path / "out"
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_json()))
    words = ["study", str(tmp_path / "grid.json"), "--out", str(out), "--slurm", "2", "--slurm-cluster", "local"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--slurm-settings", "timeout_min=10"])
    assert left.value.code == 0
    assert "2 workers submitted" in capsys.readouterr().out

    def until(true, seconds=180.0):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            time.sleep(0.1)

    until(lambda: len(list(out.glob("runs/*/slow/*/.attempt-*/metrics.jsonl"))) == 2)
    controller = psutil.Process(jobs[0]._process.pid)
    controller.children()[0].send_signal(signal.SIGUSR2)  # as Slurm does, to the task
    assert [job.result() for job in jobs] == [0, 0]
    assert "Requeued job" in jobs[0].stderr() + jobs[0].stdout()
    monkeypatch.setenv("NAP", "0")
    run_study(grid, tmp_path / "here", jobs=1, quiet=True)
    for seed in grid.seeds:
        name = f"runs/digits/slow/seed-{seed}"
        assert Result.read(out / name).status == "finished"
        assert (out / name / "final.safetensors").read_bytes() == (
            tmp_path / "here" / name / "final.safetensors"
        ).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm", "1"], "slurm: Could not detect"),
        (
            ["--slurm", "-1", "--slurm-cluster", "local"],
            "Study.slurm must be a whole number in [0, 1e+09], got -1",
        ),
        (["--slurm", "1", "--worker"], "slurm submits workers"),
        (
            ["--slurm", "1", "--slurm-cluster", "local", "--slurm-settings", "queue"],
            "slurm_settings must be NAME=VALUE",
        ),
        (
            ["--slurm", "1", "--slurm-cluster", "local", "--slurm-settings", "queue=a"],
            "slurm_settings: Parameter 'queue'",
        ),
        (["--slurm", "1", "--mixers", "atention"], "unknown mixer 'atention'; did you mean attention"),
    ],
)
def test_what_cannot_be_submitted(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as left:
        main(["study", "digits", "--mixers", "identity", "--out", str(tmp_path / "out"), *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
