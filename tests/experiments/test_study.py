"""Studies: what is run, what is not run again, and what they survive."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from matmix.experiments import cli_study
from matmix.experiments.cli import main
from matmix.experiments.plugins import import_code
from matmix.experiments.run import Result
from matmix.experiments.runner import run_study
from matmix.experiments.study import STUDIES, Study, StudyArm, StudyTask, load_study, quickstart, with_imports

HERE = Path(__file__).parent
ODD, LAB = str(HERE / "odd_mixers.py"), str(HERE / "lab.py")
TINY = StudyTask(
    "digits",
    {"patch": 4, "dim": 8, "depth": 1},
    {"steps": 12, "log_every": 4, "eval_every": 6, "batch_size": 32, "checkpoint_every": 6},
)


def study(*mixers: str, **changes) -> Study:
    return Study(**{"name": "tiny", "tasks": (TINY,), "mixers": mixers, "seeds": (0,), "imports": (ODD,), **changes})


def result(outcome, mixer: str, seed: int = 0, task: str = "digits") -> Result:
    return Result.read(outcome.folder / "runs" / task / mixer / f"seed-{seed}")


# ------------------------------------------------------------------ the grid


def test_the_grid_pairs_everything_and_names_folders():
    grid = study(
        "identity",
        "heads('identity', 'own')",
        seeds=(3, 5),
        tasks=(TINY, dataclasses.replace(TINY, label="again")),
        recipes={"": {}, "fast": {"lr": 0.1}},
    )
    runs = grid.runs()
    assert len(runs) == 2 * 2 * 2 * 2 and len({run.folder for run in runs}) == 16
    assert [run.seed for run in runs] == [3] * 8 + [5] * 8
    assert {run.setting for run in runs} == {"digits", "digits fast", "again", "again fast"}
    assert {run.config.recipe["lr"] for run in runs if run.setting == "again fast"} == {0.1}
    assert all(run.config.recipe["steps"] == 12 and run.config.options["dim"] == 8 for run in runs)
    assert all("'" not in run.folder and " " not in run.folder for run in runs)


def test_an_arm_has_its_own_spec_and_settings():
    arms = (StudyArm("bag", "identity", {"position": "none"}, {"lr": 0.2}),)
    specs = {"own": "heads('own', 'identity')", "absent": "attention"}
    grid = study("own", "identity", tasks=(dataclasses.replace(TINY, arms=arms, specs=specs), StudyTask("recall")))
    assert Study.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    found = {run.mixer: run for run in grid.runs() if run.setting == "digits"}
    assert list(found) == ["own", "identity", "bag"]
    assert found["own"].config.mixer == "heads('own', 'identity')"
    assert found["bag"].config.mixer == "identity" and found["bag"].config.options["position"] == "none"
    assert found["bag"].config.recipe["lr"] == 0.2 != found["own"].config.recipe["lr"]
    assert found["identity"].config.options["position"] != "none"
    assert [run.mixer for run in grid.runs() if run.setting == "recall"] == ["own", "identity"]
    with pytest.raises(ValueError, match=r"arms of 'digits' must have different names, got x, x"):
        StudyTask("digits", arms=(StudyArm("x"), StudyArm("x")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixers": ()}, "mixers is empty"),
        ({"mixers": ("identity", "identity")}, "mixers must differ, got 'identity' twice"),
        ({"seeds": (1, 1)}, "seeds must differ, got 1 twice"),
        ({"name": "../x"}, "study name"),
        ({"margin": 1.0}, r"margin must be a finite number in \[0, 1\)"),
        ({"tasks": (TINY, dataclasses.replace(TINY, recipe={}))}, "different labels"),
    ],
)
def test_grids_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        study("identity", **{"mixers": ("identity",), **changes})


def test_a_study_is_json_toml_or_python(tmp_path):
    grid = study("identity", "own", recipes={"": {}, "fast": {"lr": 0.1}}, note="why")
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_json()))
    assert load_study(str(tmp_path / "grid.json")) == grid

    (tmp_path / "near.py").write_text("")
    (tmp_path / "grid.toml").write_text(
        'name = "toml"\nmixers = ["identity"]\ntasks = ["recall"]\nseeds = [4]\nimports = ["near.py"]\n'
    )
    assert load_study(str(tmp_path / "grid.toml")) == Study(
        "toml", (StudyTask("recall"),), ("identity",), (4,), imports=(str(tmp_path / "near.py"),)
    )

    (tmp_path / "grid.py").write_text(
        "from matmix.experiments.study import Study, StudyTask\n"
        "def study():\n    return Study('code', (StudyTask('digits'),), ('identity',))\n"
    )
    found = load_study(str(tmp_path / "grid.py"))
    assert found.name == "code" and found.imports == (str(tmp_path / "grid.py"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "expected a study, but it is no JSON"),
        ("a.json", '{"name": "a", "mixer": []}', "no setting 'mixer'; did you mean mixers"),
        ("a.json", '{"name": "a", "tasks": [{"task": "digits", "option": {}}], "mixers": ["x"]}', "'option'"),
        ("a.toml", "name = a", "expected a study, but it is no TOML"),
        ("a.py", "x = 1", "must define `study`"),
    ],
)
def test_bad_study_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_study(str(tmp_path / name))


def test_unknown_studies_and_imports(tmp_path):
    with pytest.raises(ValueError, match="did you mean quickstart"):
        load_study("quickstrat")
    with pytest.raises(ValueError, match="no study file"):
        load_study(str(tmp_path / "none.toml"))
    with pytest.raises(ValueError, match="there is no file"):
        import_code(str(tmp_path / "none.py"))
    with pytest.raises(ValueError, match="no such module"):
        import_code("no_such_module_here")
    assert import_code(ODD) is import_code(ODD)


def test_named_studies_have_settings_that_exist():
    for make in STUDIES.values():
        assert make().runs()


def test_quickstart_compares_ten_mixers_on_three_seeds():
    grid = STUDIES["quickstart"]()
    assert len(grid.mixers) >= 10 and {"identity", grid.reference} <= set(grid.mixers)
    assert len(grid.seeds) == 3 and {task.task for task in grid.tasks} == {"digits", "recall"}


# ------------------------------------------------------------------ running


def test_nothing_runs_when_a_mixer_is_unknown(tmp_path):
    with pytest.raises(ValueError, match="identiti on digits: ValueError: unknown mixer") as error:
        run_study(study("identity", "identiti", "own(size=3)"), tmp_path / "out", jobs=1, quiet=True)
    assert "own(size=3) on digits" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_failures_are_recorded_and_the_study_goes_on(tmp_path):
    outcome = run_study(study("fails", "diverges", "own"), tmp_path / "out", jobs=1, quiet=True)
    assert outcome.counts == {"failed": 1, "diverged": 1, "finished": 1} and not outcome.complete
    assert result(outcome, "fails").error == "RuntimeError: on purpose"
    assert "act" in (outcome.folder / "runs/digits/fails/seed-0/error.txt").read_text()
    assert result(outcome, "own").test["accuracy"] >= 0


@pytest.mark.slow
def test_results_do_not_depend_on_jobs_and_a_dead_worker_costs_its_run_only(tmp_path):
    """Of a task that a file registers, too: every process imports it."""
    more = {"tasks": (TINY, StudyTask("lab-parity")), "imports": (ODD, LAB)}
    two = run_study(study("dies", "own", "attention", **more), tmp_path / "two", jobs=2, quiet=True)
    assert two.counts == {"failed": 2, "finished": 4}
    assert "SIGKILL" in result(two, "dies").error
    one = run_study(study("own", "attention", **more), tmp_path / "one", jobs=1, quiet=True)
    for task, mixer in itertools.product(("digits", "lab-parity"), ("own", "attention")):
        for file in ("final.safetensors", "best.safetensors", "metrics.jsonl"):
            pair = [out.folder / "runs" / task / mixer / "seed-0" / file for out in (one, two)]
            assert pair[0].read_bytes() == pair[1].read_bytes()


def test_only_what_is_not_finished_is_run(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_study(study("own", "fails"), out, jobs=1, quiet=True)
    finished = out / "runs/digits/own/seed-0/result.json"
    before = finished.stat().st_mtime_ns
    outcome = run_study(study("own", "fails", "identity", seeds=(0, 1)), out, jobs=1, quiet=True)
    assert outcome.counts == {"finished": 4, "failed": 2}
    assert finished.stat().st_mtime_ns == before
    sessions = [json.loads(path.read_text()) for path in sorted((out / "sessions").iterdir())]
    assert sorted(session["pending"] for session in sessions) == [2, 5]
    assert all(session["ended"] == "done" and session["versions"]["torch"] for session in sessions)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    run_study(study("own"), tmp_path, jobs=1, quiet=True)
    other = dataclasses.replace(TINY, recipe={**TINY.recipe, "lr": 0.1})
    with pytest.raises(ValueError, match="other settings"):
        run_study(study("own", tasks=(other,)), tmp_path, jobs=1, quiet=True)


def test_bad_arguments(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="jobs=0"):
        run_study(study("own"), tmp_path, jobs=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'ray is not installed: pip install "matmix\[ray\]", or run'):
        run_study(study("own"), tmp_path, ray=True)


SCRIPT = """
import json, sys
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study
if __name__ == "__main__":
    try:
        print(run_study(Study.from_json(json.loads(sys.argv[1])), sys.argv[2], jobs=int(sys.argv[3])))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start(tmp_path: Path, grid: Study, jobs: int, nap: float) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), json.dumps(grid.to_json()), str(tmp_path / "out"), str(jobs)]
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NAP": str(nap), "PYTHONPATH": path}
    # A session of its own, so that the test can press its Ctrl-C, which a process in the background would ignore.
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_step(folder: Path, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(path.stat().st_size for path in folder.glob("runs/*/slow/*/metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.parametrize(
    ("how", "jobs"),
    [
        pytest.param("ctrl-c", 1, marks=pytest.mark.slow),
        pytest.param("ctrl-c", 2, marks=pytest.mark.slow),
        pytest.param("kill", 1, marks=pytest.mark.slow),
        pytest.param("kill", 2, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_study_goes_on(tmp_path, monkeypatch, how, jobs):
    """Ctrl-C goes to the whole foreground group of a terminal; SIGKILL hits the parent alone."""
    grid = study("slow", "own", seeds=(0, 1))
    process = start(tmp_path, grid, jobs, nap=0.3)
    wait_for_step(tmp_path / "out")
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "The same command goes on" in printed
        stopped = Result.read(tmp_path / "out/runs/digits/slow/seed-0")
        assert stopped.status == "interrupted" and stopped.step > 0
    else:
        process.kill()
        process.communicate(timeout=60)
    monkeypatch.setenv("NAP", "0")
    assert run_study(grid, tmp_path / "out", jobs=1, quiet=True).counts == {"finished": 4}
    whole = run_study(study("slow"), tmp_path / "whole", jobs=1, quiet=True)
    name = "runs/digits/slow/seed-0/final.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.slow
def test_ray_spreads_the_runs(tmp_path):
    pytest.importorskip("ray")
    outcome = run_study(study("own", "fails", "dies", "diverges"), tmp_path / "ray", ray=True, quiet=True)
    assert outcome.counts == {"finished": 1, "failed": 2, "diverged": 1}
    here = run_study(study("own"), tmp_path / "here", jobs=1, quiet=True)
    name = "runs/digits/own/seed-0/final.safetensors"
    assert (outcome.folder / name).read_bytes() == (here.folder / name).read_bytes()


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_time_that_is_over_stops_a_study(tmp_path, monkeypatch, capsys, jobs):
    monkeypatch.setenv("NAP", "0.3")
    grid = study("slow", seeds=(0, 1))
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        outcome = run_study(grid, tmp_path, jobs=jobs, minutes=(2 if jobs == 1 else 9) / 60)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert not outcome.complete
    assert re.search(r"minutes are over; \d of 2 runs are left", capsys.readouterr().out)
    monkeypatch.setenv("NAP", "0")
    assert run_study(grid, tmp_path, jobs=1, quiet=True, minutes=5).complete
    with pytest.raises(ValueError, match="minutes must be a time, or 0 for no limit, got minutes=-1"):
        run_study(grid, tmp_path, minutes=-1)


def test_a_named_study_has_the_options_of_its_function(tmp_path, monkeypatch, capsys):
    def made(width: int = 8, kind: Literal["a", "b"] = "a") -> Study:
        tasks = tuple(dataclasses.replace(TINY, label=label, options={**TINY.options, "dim": width}) for label in "xyz")
        return Study("made", tasks, ("identity",), note=f"kind {kind}")

    monkeypatch.setitem(STUDIES, "made", made)
    ran = []
    monkeypatch.setattr(cli_study, "_run_study", lambda found, given: ran.append(found) or 0)
    words = ["made", "--width", "16", "--kind", "b", "--tasks", "x", "z", "--seeds", "1"]
    assert cli_study.study(words) == 0
    (found,) = ran
    assert [task.label for task in found.tasks] == ["x", "z"] and found.seeds == (0,) and found.note == "kind b"
    assert found.tasks[0].options["dim"] == 16
    with pytest.raises(ValueError, match=r"study 'made' has no task 'xx'.*x"):
        cli_study.study(["made", "--tasks", "xx"])
    with pytest.raises(ValueError, match="Unrecognized options: --width, 16"):
        cli_study.study(["quickstart", "--width", "16"])


def test_imports_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = with_imports(study("own"), ["x.py", "some.module", ODD])
    assert found.imports == (ODD, str(tmp_path / "x.py"), "some.module")


def test_the_board_counts_and_estimates(monkeypatch):
    import matmix.experiments.board as board_module
    from matmix.experiments.board import Board

    clock = [0.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: clock[0])
    runs = study("own", "identity", "attention", seeds=(0, 1)).runs()
    board = Board(runs[1:], total=6, jobs=2, quiet=True)
    with board:
        board.start(runs[1])
        board.start(runs[2])
        assert board.seconds_left() is None  # nothing ended, nothing is known
        clock[0] = 10.0
        board.update(runs[2], {"step": 6, "steps": 12, "loss": 0.5, "seconds_left": 4.0, "samples_per_second": 9.0})
        board.end(runs[1], "finished", "")
        # 4 s of the running one and 3 runs of 10 s, two at a time
        assert board.seconds_left() == (4.0 + 3 * 10.0) / 2
        board.end(runs[2], "failed", "why")
        task = board.progress.tasks[0]
        assert (task.completed, task.total, board.bad) == (3, 6, 1)
        assert "3/6 runs" in task.fields["text"] and "1 failed or diverged" in task.fields["text"]


def test_a_study_may_have_the_name_of_its_task(monkeypatch, capsys):
    """It is meant then, and has no options of the task; by the class the task is there all the same."""
    monkeypatch.setitem(STUDIES, "digits", quickstart)
    for name, of_task in (("digits", False), ("sequence.tasks.digits:Digits", True)):
        with pytest.raises(SystemExit) as done:
            main(["study", name, "--help"])
        assert not done.value.code and ("--task.patch" in capsys.readouterr().out) == of_task
