"""The text-like tasks of the Long Range Arena, end to end on files in the published formats."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matmix.experiments.config import RunConfig
from matmix.experiments.run import execute, read_metrics
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text
from tests.sequence import written

DATA = Path(os.environ.get("MATMIX_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
NAMES = ("listops", "text", "retrieval")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("lra")
    settings: dict[str, Any] = {"dim": 16, "depth": 1, "cache": str(root / "cache")}
    return {
        "listops": ListOps(data=str(written.listops(root / "lists", (200, 30, 30))), length=32, **settings),
        "text": Text(data=str(written.reviews(root / "reviews", (200, 40))), length=128, **settings),
        "retrieval": Retrieval(data=str(written.papers(root / "papers", (200, 30, 30))), length=40, **settings),
    }


@pytest.mark.parametrize("name", NAMES)
class TestEveryTask:
    def test_batches_follow_from_seed_and_step(self, name: str, tasks: dict[str, Any]) -> None:
        task = tasks[name]
        first = list(itertools.islice(task.batches("train", 16, seed=5), 30))
        again = list(itertools.islice(task.batches("train", 16, seed=5, start=25), 5))
        for a, b in zip(first[25:], again, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.mask, b.mask)
        other = next(task.batches("train", 16, seed=6))
        assert not torch.equal(first[0].y, other.y) or not torch.equal(first[0].x, other.x)

    def test_ranks_share_a_batch(self, name: str, tasks: dict[str, Any]) -> None:
        task = dataclasses.replace(tasks[name], pad="length")
        whole = next(task.batches("train", 16, seed=1, start=3))
        parts = [next(task.batches("train", 16, seed=1, start=3, rank=rank, world=2)) for rank in (0, 1)]
        assert torch.equal(torch.stack([part.x for part in parts], 1).flatten(0, 1), whole.x)

    def test_evaluation_goes_through_everything_once(self, name: str, tasks: dict[str, Any]) -> None:
        task = dataclasses.replace(tasks[name], pad="length")
        for split in ("val", "test"):
            one = torch.cat([batch.x for batch in task.batches(split, 7)])
            whole = torch.cat([batch.x for batch in task.batches(split, 1000)])
            assert torch.equal(one, whole)
            assert sum(len(b.x) for rank in range(3) for b in task.batches(split, 7, rank=rank, world=3)) == len(whole)

    def test_padding_changes_nothing_but_the_length(self, name: str, tasks: dict[str, Any]) -> None:
        """The same ids are real, at the beginning, and the model says the same."""
        short, full = (dataclasses.replace(tasks[name], pad=pad) for pad in ("batch", "length"))
        a, b = (next(task.batches("train", 8, seed=2)) for task in (short, full))
        assert a.x.shape[-1] == int(a.mask.sum(-1).max()) and b.x.shape[-1] == full.length
        assert torch.equal(a.x[a.mask], b.x[b.mask]) and (b.x[~b.mask] == 0).all() and (b.x[b.mask] > 0).all()
        assert (b.mask.int().diff(dim=-1) <= 0).all()
        models = [task.model("attention(head_dim=8)", 0) for task in (short, full)]
        outputs = [model(batch.x, mask=batch.mask) for model, batch in zip(models, (a, b), strict=True)]
        torch.testing.assert_close(*outputs)

    def test_mixers_of_one_length_need_batches_of_one(self, name: str, tasks: dict[str, Any]) -> None:
        for mixer in ("dense", "attention, dense"):
            task = dataclasses.replace(tasks[name], depth=2)
            with pytest.raises(ValueError, match=r"takes sequences of one length.*--task.pad length"):
                task.model(mixer, 0)
            full = dataclasses.replace(task, pad="length")
            batch = next(full.batches("train", 4))
            assert full.forward(full.model(mixer, 0), batch).isfinite().all()

    def test_facts_and_baselines_are_json(self, name: str, tasks: dict[str, Any]) -> None:
        task = tasks[name]
        facts = task.facts()
        assert json.loads(json.dumps(facts)) == facts and len(facts["checksum"]) == 16
        y = torch.cat([batch.y for batch in task.batches("test", 1000)])
        train = task.labelled("train").labels if name != "retrieval" else task._papers().splits["train"].labels
        most = int(np.bincount(train).argmax())
        scores = task.baselines()
        assert scores["chance"]["accuracy"] == 1 / (10 if name == "listops" else 2)
        assert scores["most frequent class"]["accuracy"] == pytest.approx((y == most).double().mean().item())
        assert name in task.found() and f"{30 if name != 'text' else 40} test" in task.found()
        assert task.model("identity", 0)(*task.example()).shape == (1, 10 if name == "listops" else 2)

    def test_it_trains_from_files(self, name: str, tasks: dict[str, Any], tmp_path: Path) -> None:
        """A run of the trainer: the loss falls, and the test is above the most frequent class."""
        recipe = {"steps": 40, "batch_size": 32, "lr": 0.02, "eval_every": 20, "log_every": 5, "weight_decay": 0.0}
        settings = {**dataclasses.asdict(tasks[name]), "pool": "max" if name == "text" else "mean"}
        result = execute(RunConfig(name, "attention(head_dim=8)", 0, settings, recipe), tmp_path)
        assert result.status == "finished", result.error
        losses = [line["loss"] for line in read_metrics(tmp_path) if "lr" in line or "loss" in line]
        assert np.mean(losses[-4:]) < 0.9 * losses[0]
        assert result.test["accuracy"] > result.baselines["most frequent class"]["accuracy"]
        assert result.facts["checksum"] == tasks[name].facts()["checksum"]


def test_further_tests_are_longer_than_all_of_training(tmp_path: Path) -> None:
    counts = {"train_examples": 200, "val_examples": 20, "test_examples": 20}
    task = ListOps(max_depth=3, max_args=4, min_length=3, max_length=12, length=64, longer=(2, 4), cache=str(tmp_path),
                   position="none", **counts)  # fmt: skip
    assert task.tests() == ("test@shuffled", "test@2x", "test@4x")
    lengths = {split: task.labelled(split).rows.lengths for split in ("train", "test", *task.tests()[1:])}
    assert lengths["train"].max() < 12 and lengths["test"].max() < 12
    for factor in (2, 4):
        found = lengths[f"test@{factor}x"]
        assert len(found) == 20 and found.min() >= 12 * factor // 2 and found.max() < 12 * factor
    batch = next(iter(task.batches("test@4x", 20)))
    assert task.forward(task.model("attention", 0), batch).shape == (20, 10)


# ------------------------------------------------------------------ real data


@pytest.mark.skipif(not (DATA / "listops_d20s").is_dir(), reason="needs listops_d20s (MATMIX_DATA names its parent)")
def test_the_original_listops(tmp_path: Path) -> None:
    """10,000 rows of Nangia & Bowman's release: every value is recomputed while they are read."""
    task = ListOps(data=str(DATA / "listops_d20s"), length=1000, cache=str(tmp_path))
    facts = task.facts()
    assert [facts[split]["examples"] for split in ("train", "val", "test")] == [8000, 1000, 1000]
    assert max(facts[split]["longest"] for split in ("train", "val", "test")) == 939
    assert sum(facts[split]["mean length"] * facts[split]["examples"] for split in ("train", "val", "test")) / 1e4 == (
        pytest.approx(43, abs=0.5)
    )


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "imdb").is_dir(), reason="needs imdb (MATMIX_DATA names its parent)")
@pytest.mark.parametrize(("tokens", "vocabulary"), [("bytes", 257), ("characters", 134)])
def test_the_reviews(tokens: str, vocabulary: int, tmp_path: Path) -> None:
    """25,000 each, 12,500 of a class; 123 test reviews stand in the training set too. S5 has 135 characters at most."""
    task = Text(data=str(DATA / "imdb"), tokens=tokens, cache=str(tmp_path))
    facts = task.facts()
    assert [facts[split]["examples"] for split in ("train", "val", "test")] == [22500, 2500, 25000]
    assert facts["test"]["share of each class"] == [0.5, 0.5] and facts["vocabulary"] == vocabulary
    assert facts["test texts that are in training too"] == 123
