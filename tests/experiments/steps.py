"""One training step and one evaluation of every task, divided in every way: in parts, and over processes.

As a script, under `torchrun`, it writes what its processes find: `steps.py FOLDER OUT`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matmix.experiments import trainer
from matmix.experiments.registry import task_class
from matmix.experiments.task import Batch, Task
from matmix.training import after_step, having
from sequence.language.glue import Glue
from sequence.language.mlm import MLM
from sequence.language.mlm_structure import MLMStructure
from sequence.series.tasks.anomaly import SeriesAnomaly
from sequence.series.tasks.classification import SeriesClassification
from sequence.series.tasks.forecast import Forecast
from sequence.series.tasks.imputation import Imputation
from sequence.series.tasks.m4 import M4
from sequence.tasks.co2 import CO2
from sequence.tasks.digits import Digits
from sequence.tasks.image import Image
from sequence.tasks.listops import ListOps
from sequence.tasks.lm import LM
from sequence.tasks.pathfinder import Pathfinder
from sequence.tasks.pixel_pretraining import ImagePretraining, PathfinderPretraining
from sequence.tasks.pretraining import ListOpsPretraining, RetrievalPretraining, TextPretraining
from sequence.tasks.recall import Recall
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.speech import Speech
from sequence.tasks.text import Text
from tests.sequence.small import SMALL

BATCH = 16
VQ = "vq_attention(head_dim=4, codes=3, commitment=0.5)"  # state of its own, and a loss of its own


@dataclasses.dataclass(frozen=True)
class Rare(Digits):
    """A loss over the digit 3 alone: most parts of a batch hold few, and many none."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        counts = (batch.y == 3).to(output.dtype)
        return (nn.functional.cross_entropy(output, batch.y, reduction="none") * counts).sum() / counts.sum()

    def weight(self, batch: Batch) -> float:
        return int((batch.y == 3).sum())


@dataclasses.dataclass(frozen=True)
class Never(Rare):
    """No target at all."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return output.sum() / 0

    def weight(self, batch: Batch) -> float:
        return 0


def cases(folder: str) -> dict[str, tuple[Task, str]]:
    """A small setting of every task, without dropout, and its mixer; `folder` holds `images` by class,
    `masks`, `reviews`, `papers`, `colours`, `input.txt`, `glue`, `tokenizer.json`, `own.csv`, M4's weekly series,
    `cases` and `recordings.npz`."""
    from tests.sequence.written import LENGTH, LISTS, RATE
    from tests.vision.folders import TINY
    from vision.tasks.cifar10 import CIFAR10
    from vision.tasks.imagefolder import ImageFolder
    from vision.tasks.imagenet import ImageNet
    from vision.tasks.segmentation import Segmentation

    three = {"classes": 3}  # the folder's, instead of ten and a thousand
    cifar10, imagenet = (type(cls.__name__, (cls,), three) for cls in (CIFAR10, ImageNet))
    small: dict[str, Any] = {"patch": 4, "dim": 8, "depth": 1}
    tokens: dict[str, Any] = {"dim": 8, "depth": 1, "length": 32, "cache": f"{folder}/cache"}
    pixels: dict[str, Any] = {"dim": 8, "depth": 1, "cache": f"{folder}/cache"}
    lists = {f"{split}_examples": count for split, count in (("train", 40), ("val", 10), ("test", 10))}
    images: dict[str, Any] = {"architecture": TINY, "data": f"{folder}/images", "img_size": 32, "drop_path": 0.0}
    mixed: dict[str, Any] = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}
    table: dict[str, Any] = {"data": f"{folder}/own.csv", "architecture": "dlinear(kernel=5)", "lookback": 12}
    masks: dict[str, Any] = {"data": f"{folder}/masks", "width": 16, "inner": 16, "dropout": 0.0, "ignore_zero": True}
    return {
        "digits": (Digits(**small), VQ),
        "rare": (Rare(**small), VQ),
        "never": (Never(**small), "attention(head_dim=4)"),
        "recall": (Recall(dim=8, depth=1, eval_examples=50), "attention(head_dim=4)"),
        **{name: (task, "attention(head_dim=4, causal=True)") for name, task in SMALL.items()},
        "parity": (task_class(f"{Path(__file__).with_name('lab.py')}:Parity")(), "attention(head_dim=4)"),
        "listops": (ListOps(**tokens, **LISTS._asdict(), **lists), VQ),
        "text": (Text(**tokens, data=f"{folder}/reviews"), VQ),
        "retrieval": (Retrieval(**tokens, data=f"{folder}/papers"), VQ),
        "lm": (LM(data=f"{folder}/input.txt", length=16, context=3, dim=8, depth=1), "delta_rule(heads=2)"),
        "image": (Image(**pixels, data=f"{folder}/colours"), VQ),
        "pathfinder": (Pathfinder(**pixels, img_size=16, examples=40), VQ),
        "listops-pretraining": (ListOpsPretraining(**tokens, **LISTS._asdict(), **lists), VQ),
        "text-pretraining": (
            TextPretraining(**tokens, data=f"{folder}/reviews", objective="causal"),
            "attention(head_dim=4, causal=True)",
        ),
        "retrieval-pretraining": (RetrievalPretraining(**tokens, data=f"{folder}/papers"), VQ),
        "image-pretraining": (ImagePretraining(**pixels, data=f"{folder}/colours"), VQ),
        "pathfinder-pretraining": (PathfinderPretraining(**pixels, img_size=16, examples=40), VQ),
        "forecast": (Forecast(**table, horizon=6), ""),
        "imputation": (Imputation(**table, rate=0.3), ""),
        "series-classification": (SeriesClassification(architecture="dlinear(kernel=5)", data=f"{folder}/cases"), ""),
        "series-anomaly": (
            SeriesAnomaly(architecture="dlinear(kernel=5)", data=f"{folder}/recordings.npz", length=16),
            "",
        ),
        "mlm": (MLM(**tokens, data=f"{folder}/input.txt", vocabulary=80, pad="batch"), VQ),
        "glue": (Glue(**tokens, name="mnli", data=f"{folder}/glue", tokens=f"{folder}/tokenizer.json"), VQ),
        "mlm-structure": (
            MLMStructure(**tokens, data=f"{folder}/sentences.txt", vocabulary=80),
            "ponet(heads=2)",
        ),
        "speech": (
            Speech(**{**tokens, "length": LENGTH}, data=f"{folder}/recordings", words="folders", sample_rate=RATE),
            VQ,
        ),
        "m4": (M4(architecture="dlinear(kernel=5)", frequency="Weekly", folder=folder), ""),
        "co2": (CO2(length=16, horizon=8, dim=8, depth=1), VQ),
        "imagefolder": (ImageFolder(**images, **mixed), ""),
        "cifar10": (cifar10(**images), ""),
        "imagenet": (imagenet(**images, **mixed), ""),
        "segmentation": (Segmentation(**{**images, **masks}), ""),
    }


def divided(task: Task, mixer: str, parts: int) -> dict[str, Tensor]:
    """Loss, gradient and codebook of one training step in so many parts a process, and the loss of an evaluation."""
    accelerator = trainer.new_accelerator("no")
    rank, world = accelerator.process_index, accelerator.num_processes
    bare = task.model(mixer, 0).train()
    model = accelerator.prepare(bare)
    losses = nn.ModuleList(having(bare, "auxiliary_loss"))
    batch = next(task.batches("train", BATCH, seed=1, rank=rank, world=world))
    loss = accelerator.reduce(trainer.accumulate(accelerator, task, model, batch, parts, losses).total, "mean")
    gradient = torch.cat([p.grad.flatten() for p in bare.parameters() if p.grad is not None])
    after_step(bare)
    buffers = [buffer.flatten() for buffer in bare.buffers() if buffer.is_floating_point()]
    score = trainer.Scorer(task, accelerator, 16 // parts)(model, "val")["loss"]
    return {
        "loss": loss,
        "gradient": gradient,
        "state": torch.cat(buffers) if buffers else torch.zeros(0),
        "evaluation": torch.tensor(score),
    }


if __name__ == "__main__":
    found = {
        name: {parts: divided(*case, parts) for parts in (1, 2)}
        for name, case in cases(sys.argv[1]).items()
        if name != "never"
    }
    if int(torch.distributed.get_rank()) == 0:
        torch.save(found, Path(sys.argv[2]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
