"""A step is one mean over its targets: parts and processes change nothing, for every task."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from matmix.experiments.run import RunConfig, execute, read_metrics
from matmix.experiments.task import examples
from tests.experiments import steps
from tests.sequence import written
from tests.sequence.series import tables
from tests.sequence.small import SMALL
from tests.vision.folders import make_folder
from tests.vision.test_segmentation import make_folder as make_masks

NAMES = (
    *SMALL,
    "digits", "rare", "recall", "parity", "listops", "text", "retrieval", "image", "pathfinder", "lm", "co2",
    "imagefolder", "cifar10", "imagenet", "segmentation",
    "listops-pretraining", "text-pretraining", "retrieval-pretraining", "image-pretraining",
    "pathfinder-pretraining", "mlm", "mlm-structure", "glue", "speech", "forecast", "imputation", "m4",
    "series-classification", "series-anomaly",
)  # fmt: skip

WITHOUT_EXAMPLES = {"image-pretraining", "mad", "segmentation", "series-anomaly"}
"""Their metrics are no means over examples: R^2, a mean over classes, intersection over union, area under a curve."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    make_folder(root / "images", {"train": 8, "val": 3, "test": 1})
    make_masks(root / "masks", counts={"train": 16, "val": 3, "test": 1})
    written.reviews(root / "reviews")
    written.papers(root / "papers")
    written.text(root / "input.txt")
    written.cifar(root / "colours")
    written.glue(root / "glue", "mnli")
    written.recordings(root / "recordings")
    (root / "sentences.txt").write_text("\n".join(written.sentences(400)))
    written.tokenizer(root / "tokenizer.json")
    tables.write(root / "own.csv", rows=200)
    tables.cases(root / "cases")
    tables.recordings(root / "recordings.npz")
    tables.m4(root)
    return str(root)


@pytest.fixture(autouse=True)
def no_workers(monkeypatch) -> None:
    monkeypatch.setenv("MATMIX_WORKERS", "0")


def near(found: dict[str, Tensor], whole: dict[str, Tensor], what: str) -> None:
    for name, value in found.items():
        size = float(whole[name].norm())
        assert float((value - whole[name]).norm()) <= 1e-4 * size, f"{what}: {name}"


def test_every_task_is_here(folder) -> None:
    assert set(entry_points(group="matmix.tasks").names) <= set(steps.cases(folder))


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_one_step(name: str, folder) -> None:
    task, mixer = steps.cases(folder)[name]
    whole = steps.divided(task, mixer, 1)
    assert float(whole["gradient"].norm()) > 0
    for parts in (2, 8):
        near(steps.divided(task, mixer, parts), whole, f"{parts} parts")


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_examples_have_the_mean_that_is_the_score(name: str, folder) -> None:
    task, mixer = steps.cases(folder)[name]
    model, accelerator = task.model(mixer, 0), steps.trainer.new_accelerator("no")
    scores, found = steps.trainer.Scorer(task, accelerator, 16).with_examples(model, "test", 0)
    assert (found is None) == (name in WITHOUT_EXAMPLES)
    if found is not None:
        each, weights = found
        assert np.average(each, weights=weights) == pytest.approx(scores[task.metric], rel=1e-4, abs=1e-6)
        assert len(each) == sum(examples(batch.x) for batch in task.batches("test", 16))


@pytest.mark.slow
def test_two_processes_are_one_step(folder, tmp_path) -> None:
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", steps.__file__, folder)
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "found")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found")
    assert set(found) == set(NAMES)
    for name, (task, mixer) in steps.cases(folder).items():
        if name in found:
            whole = steps.divided(task, mixer, 1)
            for parts, values in found[name].items():
                near(values, whole, f"{name}: two processes, {parts} parts each")


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_without_targets_moves_nothing(parts: int, folder) -> None:
    task, mixer = steps.cases(folder)["never"]
    # Its loss would be infinite: nobody asks for it.
    accelerator = steps.trainer.new_accelerator("no")
    model, batch = task.model(mixer, 0), next(task.batches("train", 16))
    assert steps.trainer.accumulate(accelerator, task, model, batch, parts, torch.nn.ModuleList()).total == 0
    assert all(p.grad is not None and bool((p.grad == 0).all()) for p in model.parameters())


def test_training_adds_the_losses_of_its_mixers(tmp_path) -> None:
    logged, weights = [], []
    for commitment in (0.0, 100.0):
        mixer = f"vq_attention(head_dim=4, codes=3, commitment={commitment})"
        options = {"steps": 2, "batch_size": 32, "log_every": 1, "accumulate": 2}
        config = RunConfig("digits", mixer, 0, {"patch": 4, "dim": 8, "depth": 1}, options)
        assert execute(config, tmp_path / str(commitment)).status == "finished"
        logged.append([line["loss"] for line in read_metrics(tmp_path / str(commitment)) if line["split"] == "train"])
        weights.append(load_file(tmp_path / str(commitment) / "final.safetensors"))
    task = config.make_task()
    model = task.model(mixer, 0)
    distances = []
    model.blocks[0].mixer.register_forward_pre_hook(lambda mixer, args: distances.append(mixer.distance(args[0])))
    model(next(task.batches("train", 32, seed=0)).x)
    assert logged[1][0] - logged[0][0] == pytest.approx(100 * distances[0].item(), rel=1e-3)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_codebook_goes_on_where_it_stood(tmp_path, monkeypatch) -> None:
    """Stopped after step 7 and resumed from the checkpoint of step 6: the same weights, bit for bit."""
    options = {"steps": 12, "batch_size": 32, "accumulate": 2, "checkpoint_every": 3, "ema": 0.9}
    config = RunConfig("digits", steps.VQ, 0, {"patch": 4, "dim": 8, "depth": 1}, options)
    assert execute(config, tmp_path / "whole").status == "finished"
    real, done = steps.trainer.accumulate, []

    def stop(*arguments):
        done.append(1)
        if len(done) == 8:
            raise OSError("stopped")
        return real(*arguments)

    monkeypatch.setattr(steps.trainer, "accumulate", stop)
    assert execute(config, tmp_path / "again").status == "failed"
    assert execute(config, tmp_path / "again").status == "finished" and len(done) == 8 + 6
    files = [(tmp_path / way / "final.safetensors").read_bytes() for way in ("whole", "again")]
    assert files[0] == files[1]
