"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from matmix.experiments import cli
from matmix.experiments.cli_packages import list_commands
from matmix.experiments.run import Result, RunConfig, read_config
from matmix.mixers import list_mixers

TRAIN = "train digits --mixer identity --steps 4 --task.patch 4 --task.dim 8 --task.depth 1 --recipe.batch-size 32"


def matmix(command: str, **options) -> subprocess.CompletedProcess[str]:
    """In a process of its own, from the entry point."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "matmix.experiments.cli", *shlex.split(command)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, **options)


def here(command: str, capsys) -> tuple[int, str, str]:
    """In this process: exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(shlex.split(command))
    out, error = capsys.readouterr()
    return exit_.value.code, out, error


def test_train_from_the_shell(tmp_path):
    done = matmix(f"{TRAIN} --seed 3 --out run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^test loss [\d.]+, accuracy [\d.]+ .*in run$", done.stdout, re.M)
    assert "4/4: loss" in done.stdout
    result = Result.read(tmp_path / "run")
    assert result.status == "finished" and result.step == 4 and result.config["seed"] == 3
    assert result.command.endswith(f"{TRAIN} --seed 3 --out run")


def test_help_names_every_command_quickly(capsys):
    status, out, _ = here("--help", capsys)
    assert status == 0 and all(re.search(rf"^  {name} +\w", out, re.M) for name in cli.COMMANDS)
    code = "import sys; from matmix.experiments import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "[m for m in ('accelerate', 'torchmetrics', 'pandas', 'matplotlib', 'sklearn', 'rich') if m in sys.modules]"
    done = subprocess.run([sys.executable, "-c", f"{code}print({heavy})"], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["train", "study", "report", "list", "show"])
def test_help_of_a_command(name, capsys):
    status, out, _ = here(f"{name} --help", capsys)
    assert status == 0 and f"usage: matmix {name}" in out
    if name == "train":
        assert all(flag in out for flag in ("--mixer", "--seed", "--steps", "--out", "--import", "--recipe.lr"))


@pytest.mark.parametrize(
    ("command", "what", "option"),
    [
        ("cost", "model or mixer", "--dim"),
        ("explain", "model", "--out"),
        ("sites", "model", "--help"),
        ("forecast", "file", "--out"),
    ],
)
def test_commands_about_a_model_want_its_name(command, what, option, tmp_path, capsys):
    """It stands first; help is there without one, and files that register mixers are imported before either."""
    status, out, _ = here(f"{command} --help", capsys)
    assert status == 0 and f"usage: matmix {command} {what.upper().replace(' ', '_')} " in out and option in out
    status, _, error = here(command, capsys)
    assert status == 2 and f"name the {what} first: matmix {command} NAME" in error
    (tmp_path / "loud.py").write_text("raise ValueError('imported')")
    for words in (f"--import {tmp_path}/loud.py", f"pooling --import {tmp_path}/loud.py"):
        status, _, error = here(f"{command} {words}", capsys)
        assert status == 2 and "imported" in error


def test_help_of_a_task_shows_its_settings(capsys):
    _, out, _ = here("train recall --help", capsys)
    assert "--task.vocabulary" in out and "--task.pairs" in out and "--recipe.steps" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian digits", "unknown command 'trian'; did you mean train?"),
        ("train digit --mixer ssd", "unknown task 'digit'; did you mean digits?"),
        ("train --mixer ssd", "name the task first"),
        ("train digits --mixer hidra --out {out}", "unknown mixer 'hidra'; did you mean hydra"),
        ("train digits --mixer hydra(size=3) --out {out}", "hydra has no option 'size'"),
        ("train digits --mixer 'ssd, ssd, ssd' --out {out}", "does not divide depth=2"),
        ("train digits --mixer identity --steps 0 --out {out}", "Train.steps must be a whole number in [1, 1e+09]"),
        ("train digits --mixer identity --import none.py --out {out}", "there is no file"),
        ("show hidra --out {out}.png", "unknown mixer 'hidra'"),
        ("show ssd --dim 64 --length 0 --out {out}.png", "positive"),
        ("study quickstrat --out {out}", "did you mean quickstart"),
        ("study quickstart --seeds 0 --out {out}", "seeds must be a whole number in [1, 1e+09]"),
        ("report {out}", "{out}"),
    ],
)
def test_wrong_input_is_one_line(command, message, tmp_path, capsys):
    out = tmp_path / "out"
    status, printed, error = here(command.format(out=out), capsys)
    assert status == 2, (printed, error)
    assert message.format(out=out) in error and error.startswith("matmix: ") and len(error.splitlines()) == 1
    assert printed == ""
    assert not list(tmp_path.iterdir()), "it left something behind"


@pytest.mark.parametrize("command", [*cli.COMMANDS, *list_commands()])
def test_every_command_says_in_one_line_what_is_wrong(command, capsys):
    status, out, error = here(f"{command} --no-such-option", capsys)
    assert status == 2 and not out
    assert error.startswith("matmix: ") and error.count("\n") == 1, error


def test_unknown_options_are_refused(capsys):
    status, out, error = here("train digits --mixer identity --recipe.stepz 3", capsys)
    assert status == 2 and "--recipe.steps" in out + error
    status, out, error = here("train digits --mixer identity --model x", capsys)  # a short name of other tasks
    assert status == 2 and "--model" in out + error
    status, out, error = here("train digits --mixer identity --task.patch 3", capsys)
    assert status == 2 and "'3'" in error and "('1', '2', '4')" in error and error.count("\n") == 1


def test_a_diverged_or_failed_run_is_not_a_success(tmp_path, capsys):
    status, out, _ = here(f"{TRAIN} --recipe.lr 1e30 --recipe.clip 0 --quiet --out {tmp_path}/a", capsys)
    assert status == 1 and out.startswith("diverged at step")


def test_list(capsys):
    status, out, _ = here("list", capsys)
    assert status == 0
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert set(rows) >= set(list_mixers())
    assert "O(L^2 D" in rows["attention"] and "data dependent" in rows["attention"]
    status, out, _ = here("list --tasks", capsys)
    assert status == 0 and {line.split()[0] for line in out.splitlines()[1:]} >= {"digits", "co2", "recall"}
    status, out, _ = here("list --markdown", capsys)
    from matmix.mixers.registry import markdown_table

    assert out.strip() == markdown_table().strip()


def test_show_draws(tmp_path, capsys):
    status, *_ = here(f"show 'attention(head_dim=8)' --dim 16 --length 12 --out {tmp_path}/deep/a.png", capsys)
    assert status == 0 and (tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    status, *_ = here(f"show pooling --dim 8 --grid 4 6 --out {tmp_path}/b.svg", capsys)
    assert status == 0 and "<svg" in (tmp_path / "b.svg").read_text()


def test_settings_of_the_task_move_the_recipe(tmp_path, monkeypatch, capsys):
    """Where a recipe follows from the settings, only what was typed overrides it."""
    from matmix.experiments.task import Recipe
    from sequence.tasks.digits import Digits

    monkeypatch.setattr(Digits, "recipe", lambda self: Recipe(steps=2, lr=self.dim / 1000, batch_size=32))
    here(f"train digits --mixer identity --task.dim 16 --task.depth 1 --quiet --out {tmp_path}/a", capsys)
    assert read_config(tmp_path / "a").recipe["lr"] == 0.016
    typed = f"train digits --mixer identity --task.dim 16 --task.depth 1 --recipe.lr 0.5 --quiet --out {tmp_path}/b"
    here(typed, capsys)
    assert read_config(tmp_path / "b").recipe["lr"] == 0.5


@pytest.mark.parametrize("task", ["digits", "co2", "recall"])
def test_reproduce_is_the_same_run(task, tmp_path, monkeypatch, capsys):
    """Every setting changed, one by one where it can be: the printed command parses back to the same configuration."""
    bare = RunConfig(task, "identity")
    changed = {}
    for name, value in bare.options.items():
        if isinstance(value, bool):
            changed[name] = not value
        elif name in ("dim", "data_seed", "split_seed", "eval_examples"):
            changed[name] = value + 16
        elif isinstance(value, float) and name in ("mlp_ratio", "dropout", "power"):
            changed[name] = value + 0.25
    recipe = {"steps": 1, "batch_size": 16, "betas": [0.8, 0.95], "clip": 0.5, "log_every": 3, "lr": 1e-5}
    config = RunConfig(task, "identity", 7, changed, recipe, threads=2)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(config.command("run"))
    status, *_ = here(shlex.join(words[1:]), capsys)
    (folder,) = (tmp_path / "repeat").iterdir()
    assert status == 0 and read_config(folder) == config and len(changed) >= 3


def test_a_mixer_from_a_file_trains(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from matmix.mixers.identity import Identity\nfrom matmix import register\n\n\n"
        "@register('cli_mine', matrix='Identity', cost='O(1)', source='a test')\nclass Mine(Identity):\n    pass\n"
    )
    command = f"{TRAIN.replace('identity', 'cli_mine')} --import {tmp_path}/mine.py --out {tmp_path}/run"
    status, _, error = here(command, capsys)
    assert status == 0, error
    assert json.loads((tmp_path / "run" / "config.json").read_text())["mixer"] == "cli_mine"
    again = json.loads((tmp_path / "run" / "result.json").read_text())["reproduce"]
    assert shlex.split(again)[-4:-1] == ["--import", f"{tmp_path}/mine.py", "--out"]


def test_study_and_report(tmp_path, monkeypatch, capsys):
    """A small study on the command line: runs, resumes to nothing, reports."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(
        'name = "small"\nmixers = ["identity", "attention(head_dim=4)"]\nseeds = [0]\n[[tasks]]\ntask = "digits"\n'
        "options = {patch = 4, dim = 8, depth = 1}\nrecipe = {steps = 4, batch_size = 32}\n"
    )
    status, out, error = here("study small.toml --seeds 2 --jobs 1", capsys)
    assert status == 0, error
    runs = list(Path("runs/small/runs").rglob("result.json"))
    assert len(runs) == 4
    assert Path("runs/small/report/index.html").exists() and "report:" in out
    before = {run: run.stat().st_mtime_ns for run in runs}
    Path("runs/small/report/report.md").unlink()
    status, *_ = here("report runs/small", capsys)
    assert status == 0 and Path("runs/small/report/report.md").exists()
    assert before == {run: run.stat().st_mtime_ns for run in runs}
