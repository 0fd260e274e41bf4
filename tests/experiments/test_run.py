"""Run folders: done once, held by one process, and honest about what went wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from matmix.experiments import cli, trainer
from matmix.experiments.plugins import fingerprints, import_all
from matmix.experiments.run import (
    Result,
    RunConfig,
    RunError,
    execute,
    load_model,
    lock,
    read_config,
    read_metrics,
)
from sequence.tasks.digits import Digits, splits

SMALL = {"patch": 4, "dim": 8, "depth": 1}
QUICK = {"steps": 12, "batch_size": 32, "log_every": 4, "eval_every": 6}


def config(mixer="attention(head_dim=4)", seed=0, **recipe) -> RunConfig:
    return RunConfig("digits", mixer, seed, SMALL, {**QUICK, **recipe})


@dataclasses.dataclass(frozen=True)
class Breaks(Digits):
    """Digits that fail at a step."""

    at: int = 8

    def batches(self, split, batch_size, *, start=0, **options) -> Iterator:
        for step, batch in enumerate(super().batches(split, batch_size, start=start, **options), start):
            if split == "train" and step == self.at:
                raise OSError("the disk is gone")
            yield batch


BREAKS = f"{__name__}:Breaks"


# ------------------------------------------------------------------ configuration


def test_config_is_resolved_and_round_trips():
    one = RunConfig("digits", "ssd", 1, {"dim": 16}, {"betas": (0.9, 0.95)})
    assert one.options["depth"] == Digits().depth and one.recipe["betas"] == [0.9, 0.95]
    assert RunConfig.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.make_task() == Digits(dim=16) and one.make_recipe().betas == (0.9, 0.95)
    same = RunConfig("digits", "ssd", 1, {"dim": 16, "depth": Digits().depth}, {"betas": [0.9, 0.95]})
    assert same == one and same.key == one.key and len({one, same}) == 1
    changes = ({"seed": 2}, {"mixer": "s4d"}, {"threads": 2}, {"plugins": {"a.py": "0"}})
    others = [dataclasses.replace(one, **change) for change in changes]
    assert len({other.key for other in (one, *others)}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digit", "ssd"), "unknown task 'digit'; did you mean digits"),
        (("nowhere:Task", "ssd"), "cannot be imported"),
        (("torch.nn:Linear", "ssd"), "not a subclass"),
        (("digits", "ssd", 0, {"dims": 3}), "no setting 'dims'; did you mean dim"),
        (("digits", "ssd", 0, {"patch": 3}), "patch must be one of 1, 2, 4, got 3"),
        (("digits", "ssd", 0, {}, {"step": 3}), "no setting 'step'; did you mean steps"),
        (("digits", "ssd", 0, {}, {"steps": 0}), r"steps must be a whole number in \[1, "),
        (("digits", "ssd", 0, {}, {"accumulate": 3}), "must divide by accumulate=3"),
        (("digits", "ssd", 0, {}, {"precision": "fp8"}), "precision must be"),
        (("recall", "ssd", 0, {"pairs": 9}), "pairs must be"),
        (("co2", "ssd", 0, {"val_share": 0.5}), "leave a test split"),
        (("digits", "ssd", 0, {}, {}, 0), r"threads must be a whole number in \[1, 1e\+09\], got 0"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(*arguments)


# ------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("run") / "deep" / "er"
    return folder, execute(config(), folder)


def test_a_finished_run_has_everything(finished):
    folder, result = finished
    assert result.status == "finished" and result.step == 12 and result.error is None
    assert Result.read(folder) == result
    assert set(result.test) == set(result.val) == {"loss", "accuracy"} and result.metric == "accuracy"
    assert result.parameters == sum(
        p.numel() for p in config().make_task().model("attention(head_dim=4)", 0).parameters()
    )
    assert result.macs > 0 and result.step_seconds > 0 and result.samples_per_second > 0 and result.seconds > 0
    assert result.peak_memory_bytes > 4 * result.parameters * 4  # weights, two moments and gradients, at least
    assert result.environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result.command and "matmix train digits" in result.reproduce
    assert result.baselines and result.facts["train"] == 1078
    assert read_config(folder) == config()
    lines = read_metrics(folder)
    assert [(line["step"], line["split"]) for line in lines] == [
        (4, "train"), (6, "val"), (8, "train"), (12, "train"), (12, "val"), (12, "test"),
    ]  # fmt: skip
    assert not (folder / "checkpoints").exists() and not (folder / "error.txt").exists()


def test_the_tested_weights_are_the_best_ones(finished):
    folder, result = finished
    best = max((line for line in read_metrics(folder) if line["split"] == "val"), key=lambda line: line["accuracy"])
    assert result.best_step == best["step"] and result.val["accuracy"] == best["accuracy"]
    task, model = load_model(folder)
    x, y = splits(0)["test"]
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).double().mean().item()
    assert accuracy == pytest.approx(result.test["accuracy"], abs=1e-6)
    assert isinstance(task, Digits) and not model.training


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    folder, result = finished
    monkeypatch.setattr(trainer, "fit", lambda *arguments: pytest.fail("it ran again"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name[:5] != ".lock"}
    assert execute(config(), folder) == execute(config(), folder, resume=False) == result
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name[:5] != ".lock"}


def test_another_configuration_is_refused(finished):
    folder, _ = finished
    with pytest.raises(RunError, match=r"holds another run: recipe\.lr is 0.006 there and 0.1 here, seed is 0 there"):
        execute(config(seed=1, lr=0.1), folder)


def test_folders_of_older_versions_say_so(tmp_path):
    """They had no number of threads, and fewer settings: they are read, but never gone on with."""
    old = {key: value for key, value in config().to_json().items() if key not in ("threads", "plugins")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path).threads == 1
    with pytest.raises(RunError, match="made by an older version, which did not record its threads"):
        execute(config(), tmp_path)
    old = config().to_json()
    del old["recipe"]["decayed"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path).make_recipe().decayed == "matrices"
    with pytest.raises(RunError, match=r"made by an older version, which did not record its recipe\.decayed"):
        execute(config(), tmp_path)


def test_a_plugin_is_part_of_the_run(tmp_path):
    """Its contents: another file of that name is another run, and a run is done with the file that it was made for."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text("one = 1\n")
    first = dataclasses.replace(config(), plugins=fingerprints([str(plugin)]))
    with pytest.raises(RunError, match=r"plugin\.py is not imported here"):
        execute(first, tmp_path / "run")
    import_all([str(plugin)])
    assert execute(first, tmp_path / "run").status == "finished"
    plugin.write_text("one = 2\n")
    assert fingerprints([str(plugin)]) == first.plugins, "the one that was imported counts"
    other = dataclasses.replace(first, plugins={"plugin.py": "0"})
    with pytest.raises(RunError, match=r"plugins\.plugin\.py is '\w+' there and '0' here"):
        execute(other, tmp_path / "run")
    with pytest.raises(RunError, match=r"plugin\.py has changed since this run was made"):
        execute(other, tmp_path / "again")


def test_threads_are_those_of_the_run_and_are_given_back(tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(trainer, "fit", lambda *arguments: seen.append(torch.get_num_threads()) or {"step": 0})
    result = execute(dataclasses.replace(config(), threads=3), tmp_path)
    assert seen == [3] == [result.environment["threads"]] and torch.get_num_threads() == before


def test_runs_repeat_exactly(finished, tmp_path):
    folder, _ = finished
    torch.randn(17)  # what the process drew before is no part of it
    execute(config(), tmp_path)
    for name in ("final.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


# ------------------------------------------------------------------ two at once


def test_a_second_process_is_refused(tmp_path, capsys):
    code = f"from matmix.experiments.folder import lock; from pathlib import Path\nwith lock(Path({str(tmp_path)!r})):"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}\n    print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(RunError, match=f"in use by process {holder.pid} on"):
            execute(config(), tmp_path)
        assert not (tmp_path / "config.json").exists()
        with pytest.raises(SystemExit) as exit_:
            cli.main(["train", "digits", "--mixer", "identity", "--out", str(tmp_path)])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and f"in use by process {holder.pid}" in error
        assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    finally:
        holder.kill()  # the lock of a dead process holds nobody up
        holder.wait()
    with lock(tmp_path):
        pass


def test_one_process_cannot_hold_it_twice(tmp_path):
    with lock(tmp_path), pytest.raises(RunError, match="in use"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


# ------------------------------------------------------------------ what goes wrong


def test_divergence_is_recorded_and_final(tmp_path):
    result = execute(config(lr=1e30, clip=0.0, warmup=0.0, steps=40), tmp_path)
    assert result.status == "diverged" and "loss is" in result.error and 0 < result.step <= 8
    assert Result.read(tmp_path) == result and result.done and not result.test
    assert not (tmp_path / "checkpoints").exists()
    assert execute(config(lr=1e30, clip=0.0, warmup=0.0, steps=40), tmp_path) == result


def test_a_failing_run_leaves_its_error_and_can_go_on(tmp_path, monkeypatch):
    broken = RunConfig(BREAKS, "identity", 0, SMALL, {**QUICK, "checkpoint_every": 3})
    result = execute(broken, tmp_path)
    assert result.status == "failed" and result.error == "OSError: the disk is gone" and not result.done
    trace = (tmp_path / "error.txt").read_text()
    assert "Traceback" in trace and 'raise OSError("the disk is gone")' in trace
    assert Result.read(tmp_path).status == "failed"

    steps = []
    real = trainer.accumulate
    monkeypatch.setattr(trainer, "accumulate", lambda *a: steps.append(1) or real(*a))
    monkeypatch.setattr(Breaks, "batches", Digits.batches)  # the disk is back
    assert execute(broken, tmp_path).status == "finished"
    assert len(steps) == 12 - 6  # from the checkpoint of step 6
    assert not (tmp_path / "error.txt").exists()
    assert [line["step"] for line in read_metrics(tmp_path) if line["split"] == "train"] == [4, 8, 12]


def test_an_unknown_mixer_is_a_failed_run(tmp_path):
    result = execute(config("hidra"), tmp_path)
    assert result.status == "failed" and "did you mean hydra" in result.error


def test_no_resume_starts_over(tmp_path, monkeypatch):
    broken = RunConfig(BREAKS, "identity", 0, SMALL, {**QUICK, "checkpoint_every": 3})
    execute(broken, tmp_path)
    monkeypatch.setattr(Breaks, "batches", Digits.batches)
    steps = []
    real = trainer.accumulate
    monkeypatch.setattr(trainer, "accumulate", lambda *a: steps.append(1) or real(*a))
    assert execute(broken, tmp_path, resume=False).status == "finished"
    assert len(steps) == 12 and [line["step"] for line in read_metrics(tmp_path)][:2] == [4, 6]


def test_damaged_checkpoints_cost_time_only(tmp_path, finished, monkeypatch):
    """Both checkpoints of an unfinished run are spoilt: it starts over, and ends the same."""
    real, left = trainer.accumulate, 10

    def stop(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError("stopped")
        return real(*arguments)

    monkeypatch.setattr(trainer, "accumulate", stop)
    each = dataclasses.replace(config(), recipe={**config().recipe, "checkpoint_every": 3})
    assert execute(each, tmp_path).status == "failed"
    files = list((tmp_path / "checkpoints").glob("*/tensors.safetensors"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert execute(each, tmp_path).status == "finished"
    # Their keys differ, which stand in the file beside the weights.
    there, here = (load_file(folder / "final.safetensors") for folder in (finished[0], tmp_path))
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)
    assert (finished[0] / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()


def test_command_names_only_what_differs():
    command = config().command("out")
    assert command.startswith("matmix train digits --mixer 'attention(head_dim=4)' --seed 0 --task.dim 8")
    assert " --task.patch 4 " in command and "--task.layout" not in command
    plain = RunConfig("digits", "ssd", 2, {"position": "none"}, {"betas": [0.8, 0.9]})
    words = plain.command("a").split()
    expected = "matmix train digits --mixer ssd --seed 2 --task.position none --recipe.betas 0.8 0.9 --out"
    assert words[:-1] == expected.split() and words[-1] == f"repeat/{plain.name}"
    assert "--threads 2" in dataclasses.replace(plain, threads=2).command("a")


def test_a_repetition_is_never_in_the_folder_of_the_run():
    plain = RunConfig("digits", "ssd", 2)
    first = f"repeat/{plain.name}"
    assert plain.command("runs/a").endswith(f" {first}")
    assert plain.command(first).endswith(f" {first}-2") and plain.command(f"{first}-2").endswith(f" {first}-3")


def test_weights_without_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model[0].weight._no_weight_decay = True
    model.append(nn.Linear(3, 2))
    decayed, plain = trainer.new_optimizer(model, config().make_recipe()).param_groups
    assert decayed["weight_decay"] == config().recipe["weight_decay"] and plain["weight_decay"] == 0
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert len(plain["params"]) == 5
