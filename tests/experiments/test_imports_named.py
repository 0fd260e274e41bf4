"""Code is run where a person names it: what the files of a run or a study name is data."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from matmix import register
from matmix.experiments import cli
from matmix.experiments.config import RunConfig
from matmix.experiments.entries import entries
from matmix.experiments.folder import RunError, load_model, read_config
from matmix.experiments.plugins import NotNamed, fingerprints, import_all, import_code
from matmix.experiments.registry import register_task
from matmix.experiments.report.collect import collect
from matmix.experiments.run import execute
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask
from matmix.mixers import Mixer, list_mixers, mixer_info

TASK = """
from dataclasses import dataclass
from pathlib import Path
from sequence.tasks.digits import Digits
Path(__file__).with_suffix(".ran").touch()

@dataclass(frozen=True)
class Own(Digits):
    patch: int = 4
    dim: int = 8
    depth: int = 1

    @classmethod
    def together(cls, runs):
        return [f"{len(runs)} runs of my own"]
"""
MIXER = """
from pathlib import Path
from matmix import register
from matmix.mixers import mixer_info
Path(__file__).with_suffix(".ran").touch()

@register("NAME", matrix="Identity", cost="0", source="here")
class Mine(mixer_info("identity").cls):
    pass
"""
QUICK = {"steps": 2, "batch_size": 8, "eval_every": 2, "log_every": 1}


@pytest.fixture
def study(tmp_path) -> Path:
    """A finished study of a task and a mixer in files, as it came from somebody else: neither is imported."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    name = f"mine_{abs(hash(tmp_path))}"
    (theirs / "task.py").write_text(TASK)
    (theirs / "mixer.py").write_text(MIXER.replace("NAME", name))
    plan = Study("odd", (StudyTask(f"{theirs}/task.py:Own", {}, QUICK),), ("identity", name), (0,),
                 imports=(str(theirs / "mixer.py"),))  # fmt: skip
    assert run_study(plan, tmp_path / "study", jobs=1, quiet=True).complete
    here = tmp_path / "here"
    shutil.move(theirs, here)  # other files, that no process has imported
    for path in [tmp_path / "study" / "study.json", *(tmp_path / "study").rglob("config.json"),
                 *(tmp_path / "study").rglob("result.json")]:  # fmt: skip
        path.write_text(path.read_text().replace(str(theirs), str(here)))
    for path in (tmp_path / "study").rglob("manifest.json"):
        path.unlink()
    for path in (tmp_path / "study").rglob("result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "key": ""}))
    for path in (tmp_path / "study").rglob("*.safetensors"):
        save_file(load_file(path), path)
    for path in here.glob("*.ran"):
        path.unlink()
    return tmp_path / "study"


def ran(study: Path) -> list[str]:
    return sorted(path.stem for path in (study.parent / "here").glob("*.ran"))


def test_a_report_runs_no_code_that_the_folder_names(study, capsys):
    (planned,) = study.glob("runs/*/identity")  # whose command is asked for
    shutil.rmtree(planned)
    index = collect(study)
    assert {run.status for run in index.runs} == {"finished", "missing"}
    with pytest.raises(SystemExit) as left:
        cli.main(["report", str(study)])
    assert left.value.code == 0 and ran(study) == []
    text = (study / "report" / "report.md").read_text()
    here = study.parent / "here"
    assert f"matmix report {study} --import {here / 'task.py'} includes it" in text
    assert f"{here / 'mixer.py'} is not imported here" in text and "of my own" not in text

    with pytest.raises(SystemExit) as left:
        cli.main(["report", str(study), "--import", str(here / "task.py")])
    assert left.value.code == 0 and ran(study) == ["task"]
    assert f"imports {here / 'task.py'}\n" in capsys.readouterr().err
    assert "1 runs of my own" in (study / "report" / "report.md").read_text()


def test_readers_of_runs_import_nothing(study):
    (folder,) = study.glob("runs/*/identity/seed-0")
    for read in (read_config, load_model):
        with pytest.raises(NotNamed, match=r"here/task\.py is not imported, since only data name it"):
            read(folder)
    assert ran(study) == []
    import_all([str(study.parent / "here" / "task.py")])
    assert load_model(folder)[0] == read_config(folder).make_task()


def test_a_module_that_data_name_is_not_imported(tmp_path, monkeypatch):
    """One that Python would find, in the current folder too."""
    (tmp_path / "lying_about.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig("digits", "identity").to_json()
    (tmp_path / "config.json").write_text(json.dumps({**config, "task": "lying_about:Task"}))
    with pytest.raises(NotNamed, match="lying_about is not imported"):
        read_config(tmp_path)
    assert "lying_about" not in sys.modules


def test_a_study_file_of_ones_own_says_what_it_imports(tmp_path, capsys):
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "plan.toml").write_text('name = "plan"\nmixers = ["identity"]\nseeds = [0]\n[[tasks]]\n'
                                        'task = "task.py:Own"\nrecipe = {steps = 1, batch_size = 8}\n')  # fmt: skip
    with pytest.raises(SystemExit) as left:
        cli.main(["study", str(tmp_path / "plan.toml"), "--jobs", "1", "--out", str(tmp_path / "out")])
    assert left.value.code == 0 and f"imports {tmp_path / 'task.py'}\n" in capsys.readouterr().err


# ------------------------------------------------------------------ contents are part of a run


def test_code_behind_a_name_is_part_of_the_run(tmp_path):
    """However it came in: by its path, by its name, registered by a file that nobody listed."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "mixer.py").write_text(MIXER.replace("NAME", "behind_a_name"))
    assert RunConfig("digits", "identity").plugins == {}, "matmix's own is released with it"
    task = RunConfig(f"{tmp_path}/task.py:Own", "identity")
    assert task.plugins == fingerprints([str(tmp_path / "task.py")]) and len(task.plugins) == 1
    import_code(str(tmp_path / "mixer.py"))
    for spec in ("behind_a_name", "attention*2, behind_a_name", 'heads("behind_a_name", "attention")'):
        assert RunConfig("digits", spec).plugins.keys() == {"mixer.py"}, spec
    one = RunConfig("digits", "behind_a_name")
    assert RunConfig.from_json(json.loads(json.dumps(one.to_json()))) == one
    named = dataclasses.replace(one, plugins=fingerprints([str(tmp_path / "mixer.py")]))
    assert named == one, "listed or not, it is the same run"


def test_a_class_in_a_study_file_is_part_of_its_runs(tmp_path):
    """A file that lists mixers may grow; one with a class of a task in it decides what its runs are."""
    described = "from matmix.experiments.study import Study, StudyTask\n'''What is asked.'''\n"
    plan = "study = Study('s', (StudyTask('digits'),), ('identity',), (0,))\n"
    for number, (text, part) in enumerate((
        (described + plan, False),
        (described + "def study():\n    return None\n", False),
        (described + TASK.replace('Path(__file__)', '_ = Path(__file__)') + plan, True),
        (described + "import matmix\nmatmix.something = 1\n" + plan, True),
        (described + plan + "print('called')\n", True),
    )):  # fmt: skip
        file = tmp_path / f"plan_{number}.py"
        file.write_text(text)
        import_code(str(file))
        assert bool(fingerprints([str(file)])) == part, text
    task = RunConfig(f"{tmp_path}/plan_2.py:Own", "identity")
    assert task.plugins.keys() == {"plan_2.py"}


def test_an_edited_file_makes_another_run(tmp_path):
    """In the words of the person who edited it, and old weights are not loaded into new code."""
    (tmp_path / "task.py").write_text(TASK)
    config = RunConfig(f"{tmp_path}/task.py:Own", "identity", 0, {}, QUICK)
    assert execute(config, tmp_path / "run").status == "finished"
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    other = RunConfig.from_json({**data, "plugins": {"task.py": "0" * 64}})
    with pytest.raises(RunError, match=r"holds another run: plugins\.task\.py is '\w+' there and '0+' here"):
        execute(other, tmp_path / "run")
    for name in ("config.json", "result.json"):
        text = (tmp_path / "run" / name).read_text()
        (tmp_path / "run" / name).write_text(text.replace(config.plugins["task.py"], "0" * 64))
    (tmp_path / "run" / "manifest.json").unlink()
    weights = load_file(tmp_path / "run" / "best.safetensors")
    save_file(weights, tmp_path / "run" / "best.safetensors")  # without the key of its run
    with pytest.raises(RunError, match=r"task\.py has changed since this run was made"):
        load_model(tmp_path / "run")


# ------------------------------------------------------------------ names are taken once


@pytest.mark.parametrize("name", ["attention", "identity"])
def test_no_file_takes_the_name_of_a_mixer(name, tmp_path):
    """Even with a class that is called as ours is."""
    before = mixer_info(name).cls
    file = tmp_path / "taker.py"
    file.write_text(MIXER.replace("NAME", name).replace("class Mine", f"class {before.__qualname__}"))
    with pytest.raises(ValueError, match=f"the mixer name '{name}' is taken by matmix"):
        import_code(str(file))
    assert mixer_info(name).cls is before and name in list_mixers()


def test_names_are_taken_once_of_every_kind():
    class Identity(Mixer):
        pass

    with pytest.raises(ValueError, match="is taken by"):
        register("identity", matrix="", cost="", source="")(Identity)
    with pytest.raises(ValueError, match="is taken by"):
        register_task("digits")
    from matmix.adapters import Adapter
    from matmix.adapters.registry import adapters, register_adapter
    from matmix.projection.base import list_projections, register_projection

    first = adapters()[0]
    with pytest.raises(ValueError, match="is taken by"):
        register_adapter(type(type(first).__name__, (Adapter,), {"name": first.name}))
    with pytest.raises(ValueError, match="is taken by"):
        register_projection(list_projections()[0], parameters="", cost="")(test_names_are_taken_once_of_every_kind)


GROUPS = {
    "tasks": "digits", "models": "timm", "data": "lra", "commands": "forecast", "studies": "mad", "pictures": "mad",
    "subjects": "images",
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_no_package_takes_the_name_of_another(group, tmp_path, monkeypatch):
    """Whatever the order in which they are installed: a package that is found before matmix, and one of its names."""
    about = tmp_path / "aaa_lab-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-lab\nVersion: 1.0\n")
    name = GROUPS[group]
    (about / "entry_points.txt").write_text(f"[matmix.{group}]\n{name} = aaa_lab:Theirs\nnew-{name} = aaa_lab:Theirs\n")
    before = entries(f"matmix.{group}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=f"'{name}' of aaa-lab .* is passed over: matmix .* has taken it"):
        found = entries(f"matmix.{group}")
    assert found[name] == before[name] and found.keys() - before.keys() == {f"new-{name}"}
