"""`matmix verify` says what is damaged or missing, and the command that it names repairs it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from matmix.experiments import cli
from matmix.experiments.run import RunConfig, execute
from matmix.experiments.verify import folders, verify

QUICK = ["--task.patch", "4", "--task.dim", "4", "--task.depth", "1", "--recipe.steps", "2", "--recipe.batch-size", "8"]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    return int(left.value.code or 0), capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run, and a study of two, side by side."""
    root = tmp_path_factory.mktemp("whole")
    for words in (["train", "digits", "--mixer", "identity", "--quiet", *QUICK, "--out", str(root / "run")],
                  ["study", "digits", "--mixers", "identity", "fnet", "--seeds", "1", "--jobs", "1", *QUICK,
                   "--out", str(root / "study")]):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert not left.value.code
    return root


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_what_is_whole(whole, capsys):
    code, out = said(["verify", str(whole)], capsys)
    assert code == 0 and out.splitlines()[-1] == "4 ok"
    assert said(["verify", str(whole / "run")], capsys)[1].splitlines()[-1] == "1 ok"


@pytest.mark.parametrize(
    ("name", "status"),
    [("run/best.safetensors", "damaged"), ("run/result.json", "damaged"), ("run/manifest.json", "missing"),
     ("study/report/index.html", "damaged"), ("study/report/runs.csv", "missing"),
     ("study/runs/digits/fnet/seed-0/metrics.jsonl", "damaged")],
)  # fmt: skip
def test_the_command_that_is_named_repairs(name, status, copy, capsys):
    path = copy / name
    before = path.read_bytes()
    if status == "missing":
        path.unlink()
    else:
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
    code, out = said(["verify", str(copy)], capsys)
    lines = out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"{status:9} {path}"))
    assert code == 1 and f"1 {status}" in lines[-1]
    *first, last = lines[at + 1].removeprefix(f"{'':9} repair: ").split(" && ")
    for command in first:
        remove, recursive, folder = shlex.split(command)
        assert (remove, recursive) == ("rm", "-r") and copy in Path(folder).parents
        shutil.rmtree(folder)
    code, out = said([*shlex.split(last)[1:], *(["--quiet"] if " train " in last else [])], capsys)
    assert code == 0, out
    code, out = said(["verify", str(copy)], capsys)
    assert (code, out.splitlines()[-1]) == (0, "4 ok")
    if path.suffix == ".safetensors" or path.name == "metrics.jsonl":
        assert path.read_bytes() == before


def test_runs_of_older_versions_are_unchecked(copy, capsys):
    for name in (".matmix", "manifest.json"):
        (copy / "run" / name).unlink()
    result = json.loads((copy / "run" / "result.json").read_text())
    del result["key"]
    (copy / "run" / "result.json").write_text(json.dumps(result))
    code, out = said(["verify", str(copy / "run")], capsys)
    assert code == 0 and "kept no checksums" in out and out.splitlines()[-1] == "1 unchecked"


def test_it_imports_nothing_and_runs_no_command_of_the_folder(tmp_path):
    """A command in a file of somebody else is quoted again, so it stays one, and is only named if it is ours."""
    config = {**RunConfig("digits", "identity").to_json(), "task": "/nowhere/theirs.py:Task"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command, named in (("matmix train digits; touch ran", "matmix train 'digits;' touch ran --out"),
                           ("rm -r /", "the command that made it")):  # fmt: skip
        (tmp_path / "environment.json").write_text(json.dumps({"command": command}))
        (tmp_path / "result.json").write_text("{}")
        (one,) = verify(tmp_path)
        assert one.status == "damaged" and f"&& {named}" in one.repair


def test_folders_of_others(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"verify: .*(holds no run, no study|there is no folder)"):
            folders(folder)
    execute(RunConfig("digits", "identity", 0, {"dim": 4, "depth": 1}, {"steps": 1, "batch_size": 8}), tmp_path / "run")
    assert folders(tmp_path) == [tmp_path / "run"]
