"""A study on a Ray cluster of two nodes, of which one goes; and what the command line says of a cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time

import pytest

from matmix.experiments.cli import main
from matmix.experiments.cluster import Cluster
from matmix.experiments.report.collect import collect
from matmix.experiments.report.tables import all_runs
from matmix.experiments.runner import run_study
from tests.experiments.test_study import HERE, study, wait_for_step

TIMES = ("seconds", "step", "ms", "tokens/s", "MB")  # columns of a table that a clock or the machine decides


def table(folder):
    frame = all_runs(collect(folder))
    kept = [name for name in frame.columns if not any(word in name for word in TIMES)]
    return frame[kept].drop(columns=["command", "folder"], errors="ignore").to_csv()


@pytest.fixture
def two_nodes(monkeypatch):
    """Ray's own test cluster: the driver's node, and one that can be taken away."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("NAP", "0.5")
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent.parent))
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    yield nodes, second
    nodes.shutdown()


@pytest.mark.slow
def test_a_node_that_goes_costs_nothing(tmp_path, monkeypatch, two_nodes, capsys):
    """Two runs at once, one a node; the one on the node that is removed goes on from its checkpoint on the other."""
    nodes, second = two_nodes
    grid = study("slow", seeds=(0, 1, 2))

    def remove() -> None:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("out/runs/*/slow/*/metrics.jsonl"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.5)
        nodes.remove_node(second, allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    outcome = run_study(grid, tmp_path / "out", ray=Cluster(nodes.address))
    remover.join()
    assert outcome.counts == {"finished": 3}
    assert "its worker or node was lost; it will go on" in capsys.readouterr().out
    same_as_here(tmp_path, monkeypatch, grid)


@pytest.mark.slow
def test_a_driver_that_is_killed_finds_everything(tmp_path, monkeypatch, two_nodes):
    nodes, _ = two_nodes
    grid = study("slow", seeds=(0, 1))
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_json()))
    words = ["-m", "matmix.experiments.cli", "study", str(tmp_path / "grid.json"), "--out", str(tmp_path / "out")]
    driver = subprocess.Popen([sys.executable, *words, "--ray", nodes.address], stdout=subprocess.DEVNULL)
    wait_for_step(tmp_path / "out", 300.0)
    driver.kill()
    driver.wait(timeout=60)
    assert run_study(grid, tmp_path / "out", ray=Cluster(nodes.address), quiet=True).counts == {"finished": 2}
    same_as_here(tmp_path, monkeypatch, grid)


def same_as_here(tmp_path, monkeypatch, grid) -> None:
    """The weights and the table are those of a study in one process, bit for bit."""
    monkeypatch.setenv("NAP", "0")
    run_study(grid, tmp_path / "here", jobs=1, quiet=True)
    for seed in grid.seeds:
        for name in ("best.safetensors", "final.safetensors", "metrics.jsonl"):
            one, other = (tmp_path / where / f"runs/digits/slow/seed-{seed}" / name for where in ("out", "here"))
            assert one.read_bytes() == other.read_bytes()
    assert table(tmp_path / "out") == table(tmp_path / "here")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "1"], "gpus is asked of a Ray cluster: say --ray, too"),
        (["--ray", "a:1", "b:2"], "ray must be one address, or nothing, got a:1 b:2"),
        (["--ray", "--memory", "-1"], "Study.memory must be a finite number in [0, 1e+09], got -1"),
        (["--ray", "--runtime-env", "absent.json"], "runtime_env: absent.json cannot be read"),
        (["--ray", "--worker"], "a worker does one run at a time"),
    ],
)
def test_what_is_said_of_a_cluster(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["study", "digits", "--mixers", "identity", "--out", str(tmp_path / "out"), *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"gpus": "one"}, {"memory": -1}, {"address": 10001}, {"runtime_env": ["pip"]}])
def test_a_cluster_is_what_its_annotations_say(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"^Cluster\.{name} must be .*, got {re.escape(repr(value))}$"):
        Cluster(**wrong)
