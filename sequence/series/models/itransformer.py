"""iTransformer: attention between series, each of which is one token."""

from __future__ import annotations

from typing import Any, ClassVar

from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from sequence.layers.block import Act
from sequence.series.layers.along_channels import AlongChannels
from sequence.series.layers.encoder import attention_spec, new_seed
from sequence.series.models.base import Goal, register_series_model
from sequence.series.models.inverted import InvertedModel, around_the_encoder
from sequence.series.published import State, encoder, of_library


def from_tslib(module: ITransformer, state: State, source: str) -> State:
    """Embedding, encoder and head."""
    return around_the_encoder(state) | encoder(module.encoder, state, source)


@register_series_model("itransformer")
class ITransformer(InvertedModel):
    """Series as tokens, attention between them (Liu et al., arXiv 2310.06625).

    `load_published(..., source="thuml/Time-Series-Library")` takes its checkpoints. Sizes are those of its script for
    ETTh2.

    Args:
        mixer: "default" is attention with biases and dropout of its matrix.
        heads: of the default mixer.
        channel_mixer: spec of a mixer along the D channels of a token in the place of the perceptron ("mlp"), the
            tokens side by side: where JustDense has put its matrices, leaving attention as it is.

    The other arguments are those of `InvertedModel`.
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
        channel_mixer: str = "mlp",
        dim: int = 128,
        depth: Depth = 2,
        heads: int = 8,
        hidden: int = 128,
        act: Act = "gelu",
        dropout: float = 0.1,
        normalise: bool | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(
            length=length,
            channels=channels,
            goal=goal,
            horizon=horizon,
            classes=classes,
            marks=marks,
            mixer=attention_spec(dim, heads, dropout) if mixer == "default" else mixer,
            dim=dim,
            depth=depth,
            hidden=hidden,
            act=act,
            dropout=dropout,
            normalise=normalise,
            published=published,
        )
        if channel_mixer == "mlp":
            return
        seed, tokens = new_seed(), channels + (marks if self.reads_marks else 0)
        for at, block in enumerate(self.encoder.blocks):
            with fork_seed(seed, f"encoder.{at}.mlp"):
                block.mlp = AlongChannels(channel_mixer, tokens, dim)
