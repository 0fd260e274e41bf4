"""iTransformer: attention between series, each of which is one token."""

from __future__ import annotations

from typing import Any, ClassVar

from sequence.layers.block import Act
from sequence.series.layers.encoder import attention_spec
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

    The other arguments are those of `InvertedModel`.
    """

    published: ClassVar[dict[str, Any]] = of_library(from_tslib)

    def __init__(
        self,
        *,
        length: int,
        channels: int,
        goal: Goal = "forecast",
        horizon: int = 0,
        classes: int = 0,
        marks: int = 0,
        mixer: str = "default",
        dim: int = 128,
        depth: int = 2,
        heads: int = 8,
        hidden: int = 128,
        act: Act = "gelu",
        dropout: float = 0.1,
        normalise: bool = True,
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
