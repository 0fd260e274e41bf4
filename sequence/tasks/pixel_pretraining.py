"""Pretraining on pictures (arXiv 2310.02980): pixels that are hidden are filled in, or the next one is said.

    matmix train pathfinder-pretraining --recipe spt --out PRE
    matmix train pathfinder --recipe spt --task.init-from PRE

A hidden pixel is 0, and a second channel says which ones are hidden; the task that takes the weights over has no such
channel, and leaves out what the embedding has learned of it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch
from matmix.ranges import OpenShare
from sequence.data.labels import IGNORED
from sequence.tasks.image import Image
from sequence.tasks.pathfinder import Pathfinder
from sequence.tasks.pixels import LEVELS
from sequence.tasks.pretraining import Pretraining, following

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class PixelPretraining(Pretraining):
    """In front of a task on pixels: the targets are grey levels, 256 classes."""

    share: OpenShare = 0.5

    if TYPE_CHECKING:  # the task behind it has these
        inputs: Literal["reals", "tokens"] = "reals"
        layout: Literal["sequence", "grid"] = "sequence"

        def size(self) -> int: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs != "reals":
            raise ValueError(f"{type(self).__name__}.inputs must be 'reals', got {self.inputs!r}")

    def longest(self) -> int:
        return self.size() ** 2

    def classes_of_targets(self) -> int:
        return LEVELS

    def model(self, mixer: str, seed: int) -> nn.Module:
        side, channels = self.size(), 1 if self.objective == "causal" else 2
        grid = (side, side) if self.layout == "grid" else (side * side,)
        outputs, head = self.classes_of_targets(), self.head()
        return self.encoder(mixer, seed, channels=channels, grid=grid, head=head, outputs=outputs, head_hidden=())

    def batch(self, pixels: Tensor, labels: Tensor) -> Batch:
        """Pixels (B, L) as they are: `posed` makes inputs of them."""
        return Batch(pixels, labels)

    def values(self, pixels: Tensor) -> Tensor:
        """Pixels (B, L) as the task has them."""
        found: Tensor = super().batch(pixels, pixels).x.squeeze(-1)  # type: ignore[misc]
        return found

    def targets(self, pixels: Tensor) -> Tensor:
        """What is to be said of pixels (B, L)."""
        return pixels.long()

    none: ClassVar[float] = IGNORED
    """Stands where nothing is to be said."""

    def posed(self, x: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Batch:
        inputs, targets = self.values(x), self.targets(x)
        if hidden is None:
            return Batch(inputs.unsqueeze(-1), following(targets, mask, self.none), mask)
        seen = torch.stack((inputs.masked_fill(hidden, 0), hidden.to(inputs.dtype)), -1)
        return Batch(seen, torch.where(hidden, targets, self.none), mask)


@dataclasses.dataclass(frozen=True)
class PathfinderPretraining(PixelPretraining, Pathfinder):
    """Fill gaps in pictures of contours, or say their next pixel."""


@dataclasses.dataclass(frozen=True)
class ImagePretraining(PixelPretraining, Image):
    """Fill gaps in grey photographs, or say their next pixel: its value, of which the absolute error counts.

    Scored is R^2, the share of the variance of the targets that is explained.
    """

    metric: ClassVar[str] = "r2"
    none: ClassVar[float] = math.nan

    def classes_of_targets(self) -> int:
        return 1  # a number

    def targets(self, pixels: Tensor) -> Tensor:
        return self.values(pixels)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.l1_loss(*self.prediction(output, batch))

    def weight(self, batch: Batch) -> float:
        return int((~batch.y.isnan()).sum())

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import R2Score

        return {"r2": R2Score()}

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        known = ~batch.y.isnan()
        return output.squeeze(-1)[known], batch.y[known]

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"mean of the targets": {"r2": 0.0}}
