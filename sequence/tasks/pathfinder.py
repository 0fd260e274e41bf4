"""Pathfinder and Path-X of the Long Range Arena (Tay et al. 2020, 2011.04006): do two discs lie on one dashed contour?

matmix train pathfinder --mixer hydra                                      drawn once, in minutes, 1,024 pixels
matmix train pathfinder --mixer hydra --task.img-size 128                  Path-X, 16,384 pixels; drawn in an hour
matmix train pathfinder --mixer hydra --data lra_release/lra_release       the released pictures
matmix train pathfinder --mixer hydra --task.img-size 16 --task.examples 20000      small, for quick studies
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from matmix.experiments.task import Recipe, Split
from matmix.ranges import Count, Seed, Whole, numbers
from matmix.sampling import stream
from sequence.data import pathfinder_sets
from sequence.data.pathfinder import Settings, published
from sequence.data.pictures import Pictures, cut
from sequence.tasks.pixels import PixelTask


@dataclasses.dataclass(frozen=True)
class Pathfinder(PixelTask):
    """Do two discs lie on one dashed contour, among others? Read pixel by pixel; chance is 0.5.

    A run within two binomial deviations of chance has learned nothing: 0.507 for 20,000 test pictures. Above it a run
    need not have followed a contour: where the discs lie says something too, since of two contours that begin side by
    side each ends nearer to where the other began, in 55 % of drawn pictures of 32 pixels and 64 % of 16. Boosted trees
    that know the coordinates of both discs, in any order, and nothing else score 0.665 +- 0.008 at 32 pixels (trained
    on 80,000) and 0.80 at 16; from their distance alone 0.534 and 0.60. That is the published generator's own: trees
    trained on 14,000 pictures drawn here have 0.657 on others of these and 0.665 +- 0.011 on 600 that its code of 2019
    drew with OpenCV. Its first contour starts in the four middle rows and columns and ends, on the mean, 3.9 below
    and 4.5 to the right of there, the second 0.7 above and 0.9 to the left of its start. So 0.5 is what a run has
    that sees nothing, and 0.665 what "discs only" has, a control to hold results against.

    Pictures are drawn from the distribution of the published generator; for the released ones name their folder in
    `data`. Of 200,000, a tenth is for validation and a tenth for the test. The archive's outer Pathfinder-128 has
    labels of other pictures; it is recognised by tracing the contours of 300 of them, and refused.
    """

    data: str = ""
    """Folder of the release that holds pathfinder32 and others, or one of these, or the packed archive, which is read
    from end to end once; empty: drawn."""
    img_size: Count = 32
    """Pixels a side: 16 (not published), 32, 64, 128 (Path-X) or 256."""
    contour_length: Whole = 0
    """Paddles of the long contours: 14 "hard", 9 "intermediate", 6 "easy"; 0 = 14, with 16 pixels 6."""
    test_contours: tuple[Count, ...] = ()
    """Further tests on long contours of so many paddles, such as 9 14 after training with 6."""
    examples: Annotated[int, numbers(10, 1e9, whole=True)] = 200_000
    """Pictures that are drawn; further tests have a tenth as many."""
    data_seed: Seed = 0
    """Draws the pictures, whatever the seed of the run."""
    broken_copy: Literal["stop", "take"] = "stop"
    """What is done where labels do not fit the pictures."""

    classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        published(self.img_size, self.contour_length)
        for length in self.test_contours:
            try:
                published(self.img_size, length)
            except ValueError as error:
                raise ValueError(f"Pathfinder.test_contours={self.test_contours}: {error}") from None
        mine = self.settings().contour_length
        if len({mine, 0, *self.test_contours}) < 2 + len(self.test_contours):
            raise ValueError(
                f"Pathfinder.test_contours holds different lengths, other than the training's {mine}, got "
                f"{self.test_contours}"
            )

    def lra_name(self) -> str:
        """The regimes know 32 pixels a side, and 128, which is Path-X."""
        names = {32: "pathfinder", 128: "pathx"}
        if self.img_size not in names:
            raise ValueError(f"img_size must be 32, or 128 for Path-X, in a published regime, got {self.img_size}")
        return names[self.img_size]

    def plain_recipe(self) -> Recipe:
        """Ten epochs of 160,000 pictures; what a run costs and reaches is said by the regimes."""
        return Recipe(
            steps=12_500, batch_size=128, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.1, log_every=50,
            eval_every=1250, eval_batch_size=256,
        )  # fmt: skip

    def settings(self) -> Settings:
        """Which pictures are drawn."""
        return published(self.img_size, self.contour_length)

    def size(self) -> int:
        return self.img_size

    def tests(self) -> tuple[str, ...]:
        return (*super().tests(), *(f"test@{length}" for length in self.test_contours))

    def solved_above(self) -> float:
        """Two standard deviations of the score of a coin over it."""
        return 0.5 + (self.pictures("test")[1].size) ** -0.5

    def pictures(self, split: Split) -> tuple[Pictures, np.ndarray]:
        if split not in ("train", "val", "test"):
            length = self.test_contours[self.tests().index(split) - len(super().tests())]
            if not self.data:
                found = self._drawn(length, self.examples // 10, stream(self.data_seed, length))
                return found, np.arange(len(found.labels))
            found, split = self._read(length), "test"
        else:
            found = self._set()
        return found, _parts(len(found.labels), self.split_seed if self.split == "random" else None)[split]

    def _set(self) -> Pictures:
        length = self.settings().contour_length
        return self._read(length) if self.data else self._drawn(length, self.examples, self.data_seed)

    def _drawn(self, length: int, count: int, seed: int) -> Pictures:
        return pathfinder_sets.generated(published(self.img_size, length), count, seed, self.cache)

    def _read(self, length: int) -> Pictures:
        return pathfinder_sets.from_files(self.data, self.img_size, length, self.broken, self.broken_copy, self.cache)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "contour length": self.settings().contour_length, **self._set().facts}

    def found(self) -> str:
        origin = f"from {self._set().facts['folder']}" if self.data else "drawn"
        left = self._set().facts.get("left out as damaged")
        return (
            f"pathfinder: {self.sizes()}, {self.img_size} x {self.img_size} pixels, {origin}"
            + (f"; {left} damaged ones left out" if left else "")
        )  # fmt: skip


@cache
def _parts(count: int, seed: int | None) -> dict[str, np.ndarray]:
    return dict(zip(("train", "val", "test"), cut(count, (0.1, 0.1), seed), strict=True))
