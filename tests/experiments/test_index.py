"""The index of a study says what the folders say, whatever happens to either."""

from __future__ import annotations

import json

import pytest

from matmix.experiments.folder import Result
from matmix.experiments.index import NAME, Index
from matmix.experiments.report.collect import collect
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyTask, is_study_folder
from matmix.folders import claim
from tests.experiments.synthetic import write_run

STUDY = Study("indexed", (StudyTask("digits"),), ("identity", "attention"), seeds=(0, 1))


def written(root):
    root.mkdir(exist_ok=True)
    (root / "study.json").write_text(json.dumps(STUDY.to_json()))
    for run, status in zip(STUDY.runs(), ("finished", "unfinished", "failed", "finished"), strict=True):
        write_run(root, run, 0.5 + 0.1 * run.seed, status=status)
    return collect(root)


def plain(collected):
    return [(run.folder, run.status, run.result, run.curve, run.command) for run in collected.runs]


def test_what_is_read_through_the_index_is_what_the_folders_hold(tmp_path):
    first = written(tmp_path)
    made = (tmp_path / NAME).read_bytes()
    index = Index(tmp_path)
    assert plain(collect(tmp_path)) == plain(first) and (tmp_path / NAME).read_bytes() == made
    for run in STUDY.runs():
        assert index[run.folder].config == run.config.to_json()
        assert index[run.folder].result == Result.read(tmp_path / run.folder)
    assert not index.fresh


@pytest.mark.parametrize("harm", ["lost", "torn", "changed", "of another version", "not an index"])
def test_an_index_that_cannot_be_read_is_made_anew(tmp_path, harm):
    first = written(tmp_path)
    claim(tmp_path, "study", is_study_folder)
    path = tmp_path / NAME
    text = path.read_text()
    if harm == "lost":
        path.unlink()
    else:
        path.write_text({
            "torn": text[: len(text) // 2],
            "changed": text.replace('"finished"', '"diverged"'),
            "of another version": text.replace('"version": 3', '"version": 1'),
            "not an index": "[]\n{}\n",
        }[harm])  # fmt: skip
    assert plain(collect(tmp_path)) == plain(first)
    assert path.read_text() == text


def test_a_file_of_somebody_else_stays(tmp_path):
    """Below a folder that is not ours there may be runs, and a file of this name."""
    written(tmp_path)
    (tmp_path / NAME).write_text("[]\n")
    (tmp_path / "study.json").unlink()
    collect(tmp_path)
    assert (tmp_path / NAME).read_text() == "[]\n"


def test_a_folder_that_has_changed_is_read_again(tmp_path):
    written(tmp_path)
    folder = tmp_path / STUDY.runs()[0].folder
    stale = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**stale, "test": {"accuracy": 0.9, "loss": 0.1}}))
    assert collect(tmp_path).runs[0].score == 0.9 and Index(tmp_path)[STUDY.runs()[0].folder].result.test["loss"] == 0.1
    for name in ("result.json", "config.json", "metrics.jsonl"):
        (folder / name).unlink()
    assert collect(tmp_path).runs[0].status == "missing"


def test_a_finished_study_builds_no_model(tmp_path, monkeypatch):
    written(tmp_path)
    for run, found in zip(STUDY.runs(), collect(tmp_path).runs, strict=True):
        if found.status != "finished":
            for path in (tmp_path / run.folder).iterdir():
                path.unlink()
            (tmp_path / run.folder).rmdir()
            write_run(tmp_path, run, 0.5)
    monkeypatch.setattr(Study, "check", lambda self, cells: pytest.fail("checked") if list(cells) else None)
    assert run_study(STUDY, tmp_path, quiet=True).counts == {"finished": 4}
