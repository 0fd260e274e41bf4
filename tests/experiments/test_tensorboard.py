"""TensorBoard files and other trackers say what the log says, once, and change nothing."""

from __future__ import annotations

import pytest
from accelerate import tracking

from matmix.experiments import cli, extras, step, trainer
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
    assert execute(CONFIG, tmp_path / "board", track="tensorboard").status == "failed"
    assert execute(CONFIG, tmp_path / "board", track="tensorboard").status == "finished"
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
    monkeypatch.setattr(step, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r'tensorboard is not installed: pip install "matmix\[tensorboard\]"'):
        new_accelerator("no", "tensorboard", tmp_path)
    with pytest.raises(ValueError, match="wandb is not installed"):
        new_accelerator("no", "wandb", tmp_path)
    with pytest.raises(ValueError, match="track='tensorbord' is no tracker of accelerate; did you mean tensorboard"):
        new_accelerator("no", "tensorbord", tmp_path)


def test_the_old_word_is_named(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["train", "digits", "--mixer", "identity", "--tensorboard"])
    assert leave.value.code == 2 and "--tensorboard is now --track tensorboard" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(tracking, "register_tracker_class"), reason="an older accelerate knows its own alone")
def test_any_tracker_is_told_what_the_log_says(tmp_path):
    """Another tracker of accelerate's: what the run is, and every line."""
    told: list[tuple[dict, int]] = []

    class Noted(tracking.GeneralTracker):
        name = "noted"
        requires_logging_directory = False

        def __init__(self, run_name, **options):
            super().__init__()
            assert run_name == "matmix"

        @property
        def tracker(self):
            return told

        def store_init_configuration(self, values):
            assert values["mixer"] == "identity" and values["recipe.steps"] == 12 and values["options.dim"] == 8

        def log(self, values, step=None, **options):
            told.append((values, step))

    tracking.register_tracker_class(Noted)
    assert execute(CONFIG, tmp_path, track="noted").status == "finished"
    lines = read_metrics(tmp_path)
    assert [step for _, step in told] == [line["step"] for line in lines]
    assert [values.get("train/loss") for values, _ in told] == [
        line["loss"] if line["split"] == "train" else None for line in lines
    ]
