"""ImageNet-1K (ILSVRC 2012): 1,281,167 training images, 50,000 to test on, 1,000 classes.

    matmix train imagenet --model dfformer_s18 --recipe published --data FOLDER
    matmix evaluate imagenet --model caformer_s18 --weights caformer_s18.pth --data FOLDER
    accelerate launch --num_processes 8 -m matmix.experiments.cli train imagenet --model dfformer_s18 --recipe published

`data` is the data set on the Hugging Face hub (its licence has to be accepted there, and `huggingface-cli login` done),
a folder with train/ and val/ of one folder a class, or a folder of WebDataset shards. `--data synthetic` measures the
throughput of a training without any data. The published recipes count the batch over all devices; where it does not
fit, `--recipe.accumulate 8` computes it in eight parts.

What the papers call validation is the test split here, and 1 % of the training images are held out to pick the best
weights on (`held_out`); `--task.held-out 0` trains on all and picks on the test split, as the papers do.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from matmix.experiments.task import Recipe, Split
from matmix.ranges import Amount, Chance, LessThanHalf, Share
from vision.recipes import STRONG, epochs
from vision.tasks.classify import Classify


@dataclasses.dataclass(frozen=True)
class ImageNet(Classify):
    """ImageNet-1K from a folder, WebDataset shards or the Hugging Face hub, with the recipes of the papers."""

    data: str = "ILSVRC/imagenet-1k"
    held_out: LessThanHalf = 0.01
    auto_augment: str = STRONG["auto_augment"]
    mixup: Amount = STRONG["mixup"]
    cutmix: Amount = STRONG["cutmix"]
    erasing: Share = STRONG["erasing"]
    smoothing: Chance = STRONG["smoothing"]
    drop_path: Chance = 0.1

    classes: ClassVar[int] = 1000
    as_test: ClassVar[Split] = "val"

    def recipe(self) -> Recipe:
        """A hundred epochs of AdamW 1e-3 with batch 1024, in bfloat16: for models without a recipe of their own."""
        return epochs(100, batch=1024, lr=1e-3, warmup=5, clip=1.0, precision="bf16")
