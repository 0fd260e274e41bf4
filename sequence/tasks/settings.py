"""The settings of the encoder, under one name in every sequence task.

A task inherits the group that its head reads and builds its model with `encoder`:

    @dataclasses.dataclass(frozen=True)
    class Text(ClassSettings, TensorTask):
        length: int = 4096
        dim: int = 256                      # another default

        def model(self, mixer: str, seed: int) -> nn.Module:
            return self.encoder(mixer, seed, vocabulary=257, grid=(self.length,), head="class", outputs=2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from matmix.ranges import Amount, Chance, Count, Depth, Whole
from matmix.settings import Settings
from sequence.encoder import Encoder, Head, Position
from sequence.layers.block import Act
from sequence.layers.norms import Norm
from sequence.layers.pooling import PairFeatures, Pool


@dataclasses.dataclass(frozen=True)
class EncoderSettings(Settings):
    """Fields that every sequence task has; `sequence.encoder.Encoder` says more about each."""

    dim: Count = 64
    """Model width D."""
    depth: Depth = 2
    """Number of blocks."""
    mlp_ratio: Amount = 2.0
    """Hidden width of the MLP over D; 0 leaves it out."""
    glu: bool = False
    """The MLP is a gated unit."""
    act: Act = "gelu"
    """Activation of the MLP."""
    position: Position = "learned"
    """Added to the embedding. Rotary positions are the mixer's: "attention(rotary=True)"."""
    norm: Norm = "layer"
    """"batch" is over the real tokens of a batch, "scale" is Mega's."""
    prenorm: bool = True
    """Norms before mixers and MLPs, else behind the residual sums."""
    final_norm: bool = True
    """A norm behind the last block, where blocks are pre-norm."""
    conv: Whole = 0
    """Taps of a short depthwise convolution in front of each mixer, causal where the mixer is."""
    embedding_std: Amount = 0.2
    """Of the initial weights of embedding and positions."""
    dropout: Chance = 0.0
    """On the output of each mixer and MLP."""
    embedding_dropout: Chance = 0.0
    """On the embedded tokens."""
    hidden_dropout: Chance = 0.0
    """On the hidden units of the MLP."""
    tied_dropout: bool = False
    """`dropout` leaves out a channel for the whole sequence."""

    def encoder(
        self,
        mixer: str,
        seed: int,
        *,
        grid: tuple[int, ...],
        head: Head,
        outputs: int,
        vocabulary: int = 0,
        channels: int = 0,
        embedding: Callable[[], nn.Module] | None = None,
        **options: Any,
    ) -> Encoder:
        """The encoder of these settings.

        Args:
            grid, head, outputs: as the encoder has them.
            vocabulary: number of token ids, for ids (B, L).
            channels: of real values (B, L, channels).
            embedding: builds any other one; one of the three is given.
            options: of the encoder, where the task leaves no choice.
        """
        if (vocabulary > 0) + (channels > 0) + (embedding is not None) != 1:
            raise ValueError(
                "encoder: give one of vocabulary, channels and embedding, got "
                f"vocabulary={vocabulary}, channels={channels}, embedding={embedding}"
            )
        if embedding is None:
            sizes = (vocabulary or channels, self.dim)
            embedding = partial(nn.Embedding, *sizes) if vocabulary else partial(nn.Linear, *sizes)
        mine = {name: getattr(self, name) for group in GROUPS if isinstance(self, group) for name in settings_of(group)}
        return Encoder(embedding, mixer, grid=grid, head=head, outputs=outputs, seed=seed, **{**mine, **options})


@dataclasses.dataclass(frozen=True)
class ClassSettings(EncoderSettings):
    """Those of tasks that read one vector a sequence."""

    pool: Pool = "mean"
    """How the tokens become one vector."""
    pool_norm: bool = False
    """Normalise it."""
    head_hidden: tuple[Count, ...] = ()
    """Units of the hidden layers of the head."""
    head_act: Act = "gelu"
    """Their activation."""


@dataclasses.dataclass(frozen=True)
class PairSettings(ClassSettings):
    """Those of tasks that read two sequences."""

    pair_features: PairFeatures = "difference_product"
    """What the head reads of the two vectors."""


@dataclasses.dataclass(frozen=True)
class LanguageSettings(EncoderSettings):
    """Those of tasks that say the next token."""

    tied: bool = False
    """The head has the weights of the embedding."""


GROUPS = (EncoderSettings, ClassSettings, PairSettings, LanguageSettings)


def settings_of(group: type[EncoderSettings]) -> list[str]:
    """The names of the settings of a group, all of them options of the encoder."""
    return [field.name for field in dataclasses.fields(group)]
