"""Models that read series as tokens: what iTransformer and S-Mamba have in common."""

from __future__ import annotations

from torch import Tensor, nn

from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from sequence.layers.block import Act
from sequence.series.layers.encoder import SeriesEncoder, new_seed
from sequence.series.layers.heads import ClassHead, FlattenHead
from sequence.series.layers.inverted import InvertedEmbedding
from sequence.series.layers.normalise import InstanceNorm, known, normalised, normalises, restored
from sequence.series.models.base import Goal, SeriesModel
from sequence.series.published import State, named


class InvertedModel(SeriesModel):
    """The window of each series is a token, and that of each time mark; an encoder mixes them; a head reads each.

    Time marks are read for forecasts and imputation, as published.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`.
        mixer: its spec, over `channels + marks` tokens (`channels` for goals without marks).
        dim, depth, hidden: width of a token, blocks, hidden units of their perceptrons.
        act: activation of the perceptrons.
        dropout: on embedded tokens, on both branches of a block, on hidden units, in front of the classifier.
        normalise: normalise windows (`InstanceNorm`); None, as published: but not for classification.
        published: values that are not observed (they come as 0) count in mean and deviation, and padded steps are read
            as values, as in the published code; else neither counts.
    """

    def __init__(
        self,
        *,
        length: Count,
        channels: Count,
        goal: Goal,
        horizon: Whole,
        classes: Whole,
        marks: Whole,
        mixer: str,
        dim: int,
        depth: Depth,
        hidden: int,
        act: Act,
        dropout: float,
        normalise: bool | None,
        published: bool,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.reads_padding = published
        self.reads_marks = marks > 0 and goal in ("forecast", "imputation")
        self.norm = InstanceNorm() if normalises(normalise, goal) else None
        seed = new_seed()
        with fork_seed(seed, "embed"):
            self.embed = InvertedEmbedding(length, dim, dropout=dropout)
        tokens = channels + (marks if self.reads_marks else 0)
        self.encoder = SeriesEncoder(mixer, dim, depth, hidden, (tokens,), act=act, dropout=dropout, seed=seed)
        self.head: nn.Module
        with fork_seed(seed, "head"):
            if goal == "classification":
                self.head = ClassHead(channels, dim, classes, dropout=dropout)
            else:
                self.head = FlattenHead(1, dim, horizon or length)

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
        seen = None if self.reads_padding else known(x, observed, mask)
        x, window = normalised(self.norm, x, seen)
        if not self.reads_marks:
            marks = None
        elif marks is not None and mask is not None and not self.reads_padding:
            marks = marks.masked_fill(~mask.unsqueeze(-1), 0)
        tokens = self.encoder(self.embed(x, marks))[:, : self.channels]
        if self.goal == "classification":
            scores: Tensor = self.head(tokens)
            return scores
        steps: Tensor = self.head(tokens.unsqueeze(2))
        return restored(self.norm, steps, window)


def around_the_encoder(state: State, head: str = "projection") -> State:
    """Published names of embedding and head."""
    return named(state, "embed.embed", "enc_embedding.value_embedding") | named(state, "head.linear", head)
