"""CIFAR-10: 60,000 images of 32 x 32 pixels in ten classes (Krizhevsky 2009).

    matmix train cifar10 --mixer "sep_conv, sep_conv, attention, attention"

`data` is the data set on the Hugging Face hub, downloaded once; or a folder or .npz file (see `vision.data.sources`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from matmix.experiments.task import Recipe
from matmix.ranges import Amount, Chance, Portion, Share, Whole
from vision.tasks.classify import Classify


@dataclasses.dataclass(frozen=True)
class CIFAR10(Classify):
    """CIFAR-10: 32 x 32 pixels, ten classes; a tenth of the training images is held out for validation."""

    architecture: str = "convformer_s18(depths=(2, 2, 4, 2), dims=(32, 64, 128, 192))"
    data: str = "uoft-cs/cifar10"
    img_size: Whole = 32
    crop: Share = 1.0
    shrink: Whole = 32
    scale: tuple[Portion, Portion] = (0.5, 1.0)
    color_jitter: Amount = 0.2
    smoothing: Chance = 0.1
    drop_path: Chance = 0.1

    classes: ClassVar[int] = 10

    def recipe(self) -> Recipe:
        """Thirty epochs of 45,000 images in batches of 128."""
        return Recipe(
            steps=10530, batch_size=128, lr=2e-3, lr_end=0.01, warmup=0.05, betas=(0.9, 0.999), log_every=50,
            eval_every=351, checkpoint_every=351,
        )  # fmt: skip
