"""TensorBoard files say what the log says, once, and change nothing."""

from __future__ import annotations

import pytest

from matmix.experiments import extras, trainer
from matmix.experiments.run import RunConfig, execute, read_metrics
from matmix.experiments.step import new_accelerator

CONFIG = RunConfig(
    "digits", "identity", 0, {"patch": 4, "dim": 8, "depth": 1},
    {"steps": 12, "batch_size": 32, "log_every": 2, "eval_every": 6, "checkpoint_every": 4},
)  # fmt: skip


def test_a_resumed_run_goes_on(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert execute(CONFIG, tmp_path / "plain").status == "finished"
    real, done = trainer.accumulate, []

    def stop(*arguments):
        done.append(1)
        if len(done) == 8:  # logged up to step 6, saved at step 4: step 6 is done twice
            raise OSError("stopped")
        return real(*arguments)

    monkeypatch.setattr(trainer, "accumulate", stop)
    assert execute(CONFIG, tmp_path / "board", tensorboard=True).status == "failed"
    assert execute(CONFIG, tmp_path / "board", tensorboard=True).status == "finished"
    for name in ("config.json", "metrics.jsonl", "final.safetensors"):
        assert (tmp_path / "board" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    found = events.EventAccumulator(str(tmp_path / "board" / "tensorboard"))
    found.Reload()
    lines = read_metrics(tmp_path / "board")
    for split, name in (("train", "loss"), ("train", "lr"), ("val", "accuracy"), ("test", "accuracy")):
        written = [(event.step, event.value) for event in found.Scalars(f"{split}/{name}")]
        logged = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if line["split"] == split]
        assert written == logged


def test_what_is_absent_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'tensorboard is not installed: pip install "matmix\[tensorboard\]"'):
        new_accelerator("no", tmp_path)
