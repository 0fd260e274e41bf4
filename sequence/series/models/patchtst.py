"""PatchTST: attention between patches of a series, every series by itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from sequence.layers.block import Act
from sequence.layers.norms import TokenBatchNorm
from sequence.series.layers.encoder import SeriesEncoder, attention_spec, new_seed
from sequence.series.layers.heads import ClassHead, FlattenHead
from sequence.series.layers.normalise import InstanceNorm, known, normalised, normalises, restored
from sequence.series.layers.patches import PatchEmbedding
from sequence.series.models.base import Goal, SeriesModel, register_series_model
from sequence.series.published import BATCH_NORM, State, encoder, named, of_library


def from_tslib(module: PatchTST, state: State, source: str) -> State:
    """Patch embedding, encoder with its batch norm, and head."""
    ours = {"embed.embed.weight": state["patch_embedding.value_embedding.weight"]}
    ours |= encoder(module.encoder, state, source, norm="")
    ours |= named(state, "encoder.norm", "encoder.norm.1", BATCH_NORM)
    if module.goal != "classification":
        return ours | named(state, "head.linear", "head.linear")
    ours |= named(state, "head.linear", "projection")
    # There the channels of a series stand before its patches, here behind them.
    weight = ours["head.linear.weight"].unflatten(1, (module.channels, -1, module.tokens))
    return ours | {"head.linear.weight": weight.mT.flatten(1)}


@register_series_model("patchtst")
class PatchTST(SeriesModel):
    """Patches of each series as tokens, no series reads another (Nie et al., arXiv 2211.14730), as in TSLib.

    The paper's own code differs: learned positions, batch norms in the blocks, learned scales where windows are
    normalised. `load_published(..., source="thuml/Time-Series-Library")` takes TSLib's checkpoints. Sizes are
    those of its script for ETTh1, horizon 96.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`; the time of a step is not read.
        mixer: its spec, over the patches; "default" is attention with biases and dropout of its matrix.
        dim, depth, heads, hidden: width, blocks, heads of the default mixer, hidden units of the perceptrons.
        patch, stride: steps of a patch, and from one to the next.
        act: activation of the perceptrons.
        dropout: on embedded patches, on both branches of a block, on hidden units, and on the forecast (as published).
        normalise: normalise windows; None: but not for a classifier, since each series has then lost its level and its
            size. On JapaneseVowels (one seed, own validation split) accuracy is 0.65 with and 0.96 without. The
            published code does it (so None does with `published`) and has 0.95: its mean counts the zeros of the
            padding, by whose distance the level comes back.
        published: padded steps are read as values, as in the published code; else mixers do not see patches without a
            real step, and padded steps are 0 and do not count in mean and deviation.
    """

    published: ClassVar[dict[str, Any]] = of_library(from_tslib)

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
        dim: int = 512,
        depth: Depth = 1,
        heads: int = 2,
        hidden: int = 2048,
        patch: Count = 16,
        stride: Count = 8,
        act: Act = "gelu",
        dropout: float = 0.1,
        normalise: bool | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.reads_padding = published
        self.norm = InstanceNorm() if (published and normalise is None) or normalises(normalise, goal) else None
        seed = new_seed()
        with fork_seed(seed, "embed"):
            self.embed = PatchEmbedding(dim, patch=patch, stride=stride, dropout=dropout)
        self.tokens = self.embed.tokens(length)
        self.encoder = SeriesEncoder(
            attention_spec(dim, heads, dropout) if mixer == "default" else mixer,
            dim,
            depth,
            hidden,
            (self.tokens,),
            act=act,
            dropout=dropout,
            norm=TokenBatchNorm(dim),
            seed=seed,
        )
        self.head: nn.Module
        with fork_seed(seed, "head"):
            if goal == "classification":
                self.head = ClassHead(channels * self.tokens, dim, classes, act="none", dropout=dropout)
            else:
                self.head = FlattenHead(self.tokens, dim, horizon or length, dropout=dropout)

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
        x, window = normalised(self.norm, x, known(x, observed, mask))
        real = None if mask is None else torch.repeat_interleave(self.embed.real(mask), self.channels, 0)
        tokens = self.encoder(self.embed(x.mT.flatten(0, 1)), real)
        if self.goal == "classification":
            scores: Tensor = self.head(
                tokens.view(len(x), -1, tokens.shape[2]), None if real is None else real.view(len(x), -1)
            )
            return scores
        steps: Tensor = self.head(tokens.unflatten(0, (len(x), self.channels)))
        return restored(self.norm, steps, window)
