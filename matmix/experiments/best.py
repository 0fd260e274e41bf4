"""The weights that scored best on validation, and how long nothing was better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from matmix.experiments.recipe import Kept


class Best:
    """The best evaluation so far: its step, scores and weights; `stale` counts those since that were no better."""

    def __init__(self) -> None:
        self.score, self.step, self.stale = -math.inf, 0, 0
        self.val: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def take(
        self, score: float, step: int, val: dict[str, float], weights: Callable[[], dict[str, Tensor]], kept: Kept
    ) -> None:
        """Note an evaluation; a higher score is better. `weights` is asked for where it is kept: see `Recipe.kept`."""
        self.stale += 1
        # Written so that any comparison with NaN keeps in the second case, and does not in the first.
        if score > self.score if kept == "better" else not score < self.score:
            self.score, self.step, self.stale = score, step, 0
            self.val, self.weights = val, weights()

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
