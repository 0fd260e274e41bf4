"""TimesNet: series as images of their periods (arXiv 2210.02186; thuml/Time-Series-Library)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.mixers.base import drop_padding
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from matmix.spec import layer_specs
from sequence.series import published as names
from sequence.series.layers.embedding import StepEmbedding
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.normalise import InstanceNorm, known, normalised, restored
from sequence.series.layers.time_linear import TimeLinear
from sequence.series.layers.times_block import TimesBlock
from sequence.series.models.base import Goal, SeriesModel, register_series_model


def from_published(model: TimesNet, state: names.State, source: str) -> names.State:
    """Published names as ours."""
    unread = model.goal in ("anomaly", "classification")  # the published code reads no time features there
    ours = names.step_embedding(model.embedding, state, "embedding", "enc_embedding", dead=unread)
    for at, block in enumerate(model.blocks):
        if not isinstance(block, TimesBlock):
            raise ValueError(f"blocks.{at} is no TimesBlock, of which alone {source} has weights")
        for part, theirs in (("first", 0), ("second", 2)):
            for branch in range(len(block.first.kernels)):
                own = f"kernels.{branch}"
                ours |= names.named(state, f"blocks.{at}.{part}.{own}", f"model.{at}.conv.{theirs}.{own}")
    ours |= names.named(state, "norm", "layer_norm")
    if model.ahead is not None:
        ours["ahead.weight"] = state["predict_linear.weight"].unsqueeze(0)
        ours["ahead.bias"] = state["predict_linear.bias"].unsqueeze(0)
    head = "head.linear" if model.goal == "classification" else "head"
    return ours | names.named(state, head, "projection")


@register_series_model("timesnet")
class TimesNet(SeriesModel):
    """Steps as tokens; blocks find the strongest periods and convolve the series folded to each.

    To forecast, a linear layer along time makes ``length + horizon`` steps of the window before the blocks. Windows are
    normalised series by series, from observed values only, but not in classification.

    Args:
        length, channels, goal, horizon, classes, marks: as of every model.
        mixer: in the place of the blocks; "default" is TimesNet's own. What another mixer gives is added to its tokens.
        dim, depth, hidden: width D, blocks, channels between the convolutions of a block. The defaults are those of the
            script for ETTh1.
        periods: that a block folds by.
        branches: convolutions side by side, of 1, 3, 5, ... places a side.
        dropout: on the embedding.
        published: periods are chosen by the mean over the batch, in evaluation too, so a forecast depends on the other
            windows of its batch; and padding is read as steps like others and left out at the end only.
    """

    published: ClassVar[dict[str, Any]] = names.of_library(from_published)

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
        dim: int = 16,
        depth: Depth = 2,
        hidden: int = 32,
        periods: Count = 5,
        branches: Depth = 6,
        dropout: float = 0.1,
        published: bool = False,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        steps, seed = length + horizon, new_seed()
        if 2 * periods > steps:
            raise ValueError(
                f"length + horizon must be at least {2 * periods} with periods={periods}, got length={length}, "
                f"horizon={horizon}"
            )
        self.reads_padding = published
        specs = [None] * depth if mixer == "default" else layer_specs(mixer, depth)
        self.blocks = nn.ModuleList()
        for at, spec in enumerate(specs):
            with fork_seed(seed, f"blocks.{at}.mixer"):
                self.blocks.append(
                    TimesBlock(dim, hidden, periods=periods, branches=branches, published=published)
                    if spec is None
                    else Added(create_mixer(str(spec), dim, (steps,)))
                )
        self.norm = nn.LayerNorm(dim)
        self.window_norm = None if goal == "classification" else InstanceNorm()
        self.embedding = StepEmbedding(channels, dim, marks=marks, dropout=dropout)
        self.ahead = TimeLinear(length, steps) if goal == "forecast" else None
        self.head: nn.Module
        if goal == "classification":
            self.head = ClassHead(length, dim, classes, dropout=dropout)
        else:
            self.head = nn.Linear(dim, channels)

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
        self.check(x, marks, mask=mask, observed=observed)
        seen = None if self.reads_padding else mask
        x, window = normalised(self.window_norm, x, known(x, observed, seen))
        tokens = self.embedding(x, marks)
        if self.ahead is not None:
            tokens = self.ahead(drop_padding(tokens, seen))
            seen = None
        for block in self.blocks:
            tokens = drop_padding(tokens, seen)
            tokens = self.norm(block(tokens) if isinstance(block, TimesBlock) else block(tokens, seen))
        if self.goal == "classification":
            scores: Tensor = self.head(tokens, mask)
            return scores
        return restored(self.window_norm, self.head(tokens), window)[:, -self.horizon :]


class Added(nn.Module):
    """``x + mixer(x)``, which is what a block of TimesNet gives."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) and (B, L) bool, True = a real step, to (B, L, D)."""
        mixed: Tensor = self.mixer(x, mask=mask)
        return x + mixed
