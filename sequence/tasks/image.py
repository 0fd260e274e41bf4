"""Sequential grey CIFAR-10 of the Long Range Arena (Tay et al. 2020, 2011.04006): ten classes from 1,024 pixels.

matmix train image --mixer "attention(rotary=True)"                        uoft-cs/cifar10 of the Hugging Face hub
matmix train image --mixer hydra --data cifar-10-batches-bin               the published files
matmix train image --mixer hydra --task.inputs tokens --task.split order   as the Long Range Arena has it
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, ClassVar

import numpy as np

from matmix.experiments.task import Recipe, Split
from matmix.ranges import Positive
from sequence.data import cifar
from sequence.data.pictures import Pictures, cut
from sequence.tasks.pixels import PixelTask


@dataclasses.dataclass(frozen=True)
class Image(PixelTask):
    """Sequential grey CIFAR-10: which of ten classes does a picture of 32 x 32 pixels show, read pixel by pixel?

    45,000 pictures to train on, 5,000 of the published 50,000 for validation, 10,000 to test on. By default as in S4's
    line of work: reals, normalised with its mean and deviation, and a random split with seed 42.
    Mega has 0.48 and 0.24. The Long Range Arena reads tokens, and holds the last tenth out.
    """

    data: str = cifar.HUB
    """A data set of the Hugging Face hub, or a folder or file in one of the published formats (see
    `sequence.data.cifar`)."""
    mean: float = 122.6 / 255
    std: Positive = 61 / 255

    classes: ClassVar[int] = cifar.CLASSES

    def lra_name(self) -> str:
        return "image"

    def plain_recipe(self) -> Recipe:
        """Twenty epochs of 45,000 pictures; what a run costs and reaches is said by the regimes."""
        return Recipe(
            steps=18_000, batch_size=50, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.1, log_every=50,
            eval_every=900, eval_batch_size=256,
        )  # fmt: skip

    def size(self) -> int:
        return cifar.SIDE

    def pictures(self, split: Split) -> tuple[Pictures, np.ndarray]:
        found = cifar.prepared(self.data, self.broken, self.cache)["test" if split == "test" else "train"]
        if split == "test":
            return found, np.arange(len(found.labels))
        return found, _parts(len(found.labels), self.split_seed if self.split == "random" else None)[split]

    def facts(self) -> dict[str, Any]:
        left = {split: self.pictures(split)[0].facts for split in ("train", "test")}
        return {**super().facts(), **{f"{split}, damaged": facts for split, facts in left.items() if facts}}

    def found(self) -> str:
        left = sum(self.pictures(split)[0].facts.get("left out as damaged", 0) for split in ("train", "test"))
        return f"image: {self.data}: {self.sizes()}" + (f"; {left} damaged pictures left out" if left else "")


@cache
def _parts(count: int, seed: int | None) -> dict[str, np.ndarray]:
    return dict(zip(("train", "val"), cut(count, (0.1,), seed), strict=True))
