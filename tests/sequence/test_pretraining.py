"""Pretraining on a task's own inputs, then training on its labels: what is hidden, carried over, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result, read_metrics
from matmix.experiments.run import execute
from sequence.tasks.listops import ListOps
from sequence.tasks.pathfinder import Pathfinder
from sequence.tasks.pixel_pretraining import ImagePretraining, PathfinderPretraining
from sequence.tasks.pretraining import IGNORED, ListOpsPretraining, RetrievalPretraining
from tests.sequence import written

MODEL: dict[str, Any] = {"dim": 8, "depth": 1, "length": 32, "specials": ("mask", "pad", "unk", "eos")}
LISTS: dict[str, Any] = {
    **written.LISTS._asdict(), "train_examples": 64, "val_examples": 20, "test_examples": 20,
}  # fmt: skip
MIXER = "attention(head_dim=4, rotary=True)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    options = {**MODEL, **LISTS, "cache": cache}
    recipe = {"steps": 40, "batch_size": 16, "eval_every": 20, "log_every": 10, "lr": 1e-2}
    assert (
        execute(RunConfig("sequence.tasks.pretraining:ListOpsPretraining", MIXER, 0, options, recipe), folder).status
        == "finished"
    )
    return folder


def test_hidden_tokens_are_the_targets(cache) -> None:
    task = ListOpsPretraining(**MODEL, **LISTS, cache=cache, share=0.3)
    plain = ListOps(**MODEL, **LISTS, cache=cache)
    hidden = total = 0
    batches = zip(task.batches("train", 16, seed=1), plain.batches("train", 16, seed=1), range(20), strict=False)
    for batch, inputs, _ in batches:
        asked = batch.y != IGNORED
        assert torch.equal(batch.mask, inputs.mask) and not (asked & ~batch.mask).any()
        assert torch.equal(
            torch.where(asked, batch.y, batch.x), inputs.x
        )  # what is hidden is known, the rest is as it was
        assert (batch.x[asked] == 0).all() and task.weight(batch) == int(asked.sum())
        hidden, total = hidden + int(asked.sum()), total + int(batch.mask.sum())
    assert hidden / total == pytest.approx(0.3, abs=0.03)
    again, later = (next(task.batches("train", 16, seed=1, start=start)) for start in (0, 4))  # 4 steps are an epoch
    assert torch.equal(again.x, next(task.batches("train", 16, seed=1)).x) and again.x.shape != later.x.shape


def test_the_next_token_is_the_target(cache) -> None:
    task = ListOpsPretraining(**MODEL, **LISTS, cache=cache, objective="causal")
    batch = next(task.batches("val", 8))
    length = batch.mask.sum(1)
    for row, y, count in zip(batch.x, batch.y, length, strict=True):
        assert torch.equal(row[1:count], y[: count - 1]) and (y[count - 1 :] == IGNORED).all()
    with pytest.raises(ValueError, match="needs causal mixers"):
        task.model(MIXER, 0)


def test_papers_are_sequences_of_their_own(tmp_path) -> None:
    task = RetrievalPretraining(
        dim=8, depth=1, length=32, cache=str(tmp_path), data=str(written.papers(tmp_path / "x"))
    )
    batch = next(task.batches("train", 6))
    assert batch.x.dim() == 2 and len(batch.x) == len(batch.y) == 6
    with pytest.raises(ValueError, match="must divide by 2"):
        next(task.batches("train", 5))
    assert len(next(task.batches("val", 1)).x) == 2


def test_weights_go_on_but_for_the_head(pretrained, cache, tmp_path) -> None:
    result = Result.read(pretrained)
    assert result is not None and 0 < result.baselines["most frequent target"]["accuracy"] < 1
    losses = [line["loss"] for line in read_metrics(pretrained) if line["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    options = {**MODEL, **LISTS, "cache": cache}
    begun = ListOps(**options, init_from=str(pretrained)).model(MIXER, 1).state_dict()
    fresh = ListOps(**options).model(MIXER, 1).state_dict()
    best = load_file(pretrained / "best.safetensors")
    for name, value in begun.items():
        same = fresh if name.startswith("head.") else best
        assert torch.equal(value, same[name]), name
    assert not torch.equal(begun["embedding.weight"], fresh["embedding.weight"])
    config = RunConfig("listops", MIXER, 0, {**options, "init_from": str(pretrained)}, {"steps": 2, "batch_size": 16})
    tuned = execute(config, tmp_path / "tuned")
    assert tuned.status == "finished" and tuned.facts["begun at"].startswith(str(pretrained)), tuned.error


def test_pixels_are_hidden_and_said_to_be(cache, tmp_path) -> None:
    small: dict[str, Any] = {
        "dim": 8,
        "depth": 1,
        "img_size": 16,
        "examples": 40,
        "cache": cache,
        "mean": 0.5,
        "std": 0.5,
    }
    task, plain = PathfinderPretraining(**small), Pathfinder(**small)
    batch, pixels = next(task.batches("train", 16)), next(plain.batches("train", 16)).x.squeeze(-1)
    value, hidden = batch.x.unbind(-1)
    levels = torch.round((pixels * 0.5 + 0.5) * 255).long()
    assert torch.equal(value, pixels * (1 - hidden)) and 0.4 < hidden.mean() < 0.6
    assert torch.equal(batch.y, torch.where(hidden.bool(), levels, IGNORED))
    causal = next(PathfinderPretraining(**small, objective="causal").batches("train", 16))
    assert (
        torch.equal(causal.y[:, :-1], levels[:, 1:]) and (causal.y[:, -1] == IGNORED).all() and causal.x.shape[-1] == 1
    )
    config = RunConfig(
        "sequence.tasks.pixel_pretraining:PathfinderPretraining", MIXER, 0, small, {"steps": 2, "batch_size": 16}
    )
    result = execute(config, tmp_path / "pre")
    assert result.status == "finished" and not result.tests and not result.notes, result.error
    begun = Pathfinder(**small, init_from=str(tmp_path / "pre")).model(MIXER, 1)
    best = load_file(tmp_path / "pre" / "best.safetensors")["embedding.weight"]
    assert best.shape == (8, 2) and torch.equal(begun.embedding.weight, best[:, :1])  # the column of the pixel alone


def test_processes_and_batches_hide_the_same(cache) -> None:
    """Training: process r has rows r, r + 2, ... of the batch. Validation: whatever the processes and batch sizes."""
    task = PathfinderPretraining(dim=8, depth=1, img_size=16, examples=40, cache=cache)
    whole = next(task.batches("train", 8, seed=1, start=2))
    parts = [next(task.batches("train", 8, seed=1, start=2, rank=rank, world=2)) for rank in (0, 1)]
    for found, wanted in ((torch.stack([part[at] for part in parts], 1).flatten(0, 1), whole[at]) for at in (0, 1)):
        assert torch.equal(found, wanted)
    everything = torch.cat([batch.y for batch in task.batches("val", 100)])
    assert torch.equal(torch.cat([batch.y for batch in task.batches("val", 3)]), everything)
    shares = [torch.cat([batch.y for batch in task.batches("val", 4, rank=rank, world=2)]) for rank in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), everything)


def test_values_of_photographs_are_scored_by_their_variance(cache, tmp_path) -> None:
    data = str(tmp_path / "colours")
    written.cifar(tmp_path / "colours")
    task = ImagePretraining(dim=8, depth=1, cache=cache, data=data)
    batch = next(task.batches("train", 8))
    known = ~batch.y.isnan()
    assert torch.equal(known, batch.x[..., 1].bool()) and task.weight(batch) == int(known.sum())
    output = batch.y.nan_to_num(7.0).unsqueeze(-1)
    assert task.loss(output, batch) == 0 and task.loss(output + 2, batch) == pytest.approx(2)
    metric = task.metrics()["r2"]
    metric.update(*task.prediction(output, batch))
    assert metric.compute() == pytest.approx(1) and task.baselines()["mean of the targets"]["r2"] == 0


def test_what_does_not_fit_is_refused(pretrained, cache, tmp_path) -> None:
    options = {**MODEL, **LISTS, "cache": cache, "init_from": str(pretrained)}
    best = load_file(pretrained / "best.safetensors")["embedding.weight"]
    with pytest.raises(ValueError, match=r"blocks.0.mixer.D is missing there"):
        ListOps(**options).model("s4d", 0)
    with pytest.raises(ValueError, match=r"embedding.weight is \(19, 8\) there and \(16, 8\) here"):
        ListOps(**{**options, "specials": ()}).model(MIXER, 0)
    study = tmp_path / "study" / "runs" / "a" / "seed-0"
    shutil.copytree(pretrained, study)
    options["init_from"] = str(tmp_path / "study")  # of which it takes the run of the same mixer and seed
    assert torch.equal(ListOps(**options).model(MIXER, 0).embedding.weight, best)
    with pytest.raises(ValueError, match="holds no run of the mixer 'attention' with seed 0; name one run"):
        ListOps(**options).model("attention", 0)
    with pytest.raises(ValueError, match=r"holds no run of the mixer .* with seed 0; name one run"):
        ListOps(**{**options, "init_from": str(tmp_path)}).model(MIXER, 0)
    (tmp_path / "config.json").write_text((pretrained / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no run; it must be the folder of a finished run"):
        ListOps(**{**options, "init_from": str(tmp_path)}).model(MIXER, 0)
    for wrong, message in (
        ({"share": 1.0}, r"share must be a finite number in \(0, 1\), got 1.0"),
        ({"pad": "packed"}, "pad must be 'batch' or 'length': targets are not packed"),
        ({"objective": "next"}, "objective must be one of 'masked', 'causal', got 'next'"),
        ({"specials": ("pad", "eos")}, "specials need 'mask', to hide tokens with, got pad eos"),
    ):
        with pytest.raises(ValueError, match=message):
            ListOpsPretraining(**wrong)
    with pytest.raises(ValueError, match="inputs must be 'reals', got 'tokens'"):
        PathfinderPretraining(inputs="tokens")
