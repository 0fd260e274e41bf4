"""DLinear: one linear layer along time for the season of a series, one for its trend."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from matmix.mixers import create_mixer
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Whole
from sequence.series.layers.decomposition import Decomposition
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.normalise import known
from sequence.series.layers.time_linear import TimeLinear
from sequence.series.models.base import Goal, SeriesModel, register_series_model
from sequence.series.published import State, named


def from_tslib(module: DLinear, state: State) -> State:
    """`Linear_Seasonal`, `Linear_Trend`, of one layer or of one a series; `projection` of classifiers."""
    ours = {}
    for theirs, mine in (("Linear_Seasonal", "season"), ("Linear_Trend", "trend")):
        for kind in ("weight", "bias"):
            if module.season.series == 1:
                ours[f"{mine}.{kind}"] = state[f"{theirs}.{kind}"].unsqueeze(0)
            else:
                each = [state[f"{theirs}.{at}.{kind}"] for at in range(module.season.series)]
                ours[f"{mine}.{kind}"] = torch.stack(each)
    if module.head is not None:
        ours |= named(state, "head.linear", "projection")
    return ours


@register_series_model("dlinear")
class DLinear(SeriesModel):
    """`W_s season + W_t trend` along time (Zeng et al., arXiv 2205.13504), the trend a moving average.

    No normalisation, no activation, and no series reads another, unless a mixer makes it so.
    `load_published(..., source="thuml/Time-Series-Library")` takes its checkpoints, but those with a mixer.

    Args:
        length, channels, goal, horizon, classes: see `SeriesModel`.
        marks: taken as by all models; this one does not read the time of a step.
        mixer: stands in front of both linear layers, on steps as tokens with the C series as their channels, each part
            with its own; "default" is none, as published.
        kernel: steps of the moving average, odd.
        individual: weights of its own for every series.
        published: padded steps are read as values, as in the published code; else as zeros.
    """

    published: ClassVar[dict[str, Any]] = {"thuml/Time-Series-Library": from_tslib}

    def __init__(
        self,
        *,
        length: Count,
        channels: Count,
        goal: Goal = "forecast",
        horizon: Whole = 0,
        classes: Whole = 0,
        marks: Whole = 0,
        mixer: str = "default",
        kernel: int = 25,
        individual: bool = False,
        published: bool = False,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.reads_padding = published
        self.decomposition = Decomposition(kernel)
        seed = new_seed()
        with fork_seed(seed, "season"):
            self.season_mixer = create_mixer("identity" if mixer == "default" else mixer, channels, (length,))
        with fork_seed(seed, "trend"):
            self.trend_mixer = create_mixer("identity" if mixer == "default" else mixer, channels, (length,))
        series = channels if individual else 1
        self.season = TimeLinear(length, horizon or length, series=series)
        self.trend = TimeLinear(length, horizon or length, series=series)
        for layer in (self.season, self.trend):
            torch.nn.init.constant_(layer.weight, 1 / length)  # it starts as the mean of the window, as published
        self.head = ClassHead(length, channels, classes, act="none") if goal == "classification" else None

    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        observed: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """See `SeriesModel.forward`."""
        self.check(x, marks, mask=mask, observed=observed)
        mask = None if self.reads_padding else mask
        seen = known(x, observed, mask)
        season, trend = self.decomposition(x if seen is None else x.masked_fill(~seen, 0))
        season, trend = self.season_mixer(season, mask=mask), self.trend_mixer(trend, mask=mask)
        steps: Tensor = self.season(season) + self.trend(trend)
        return steps if self.head is None else self.head(steps, mask)
