"""The settings of the model that the tasks on language share: fields of `MatmixConfig`, under its names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from transformers import PreTrainedTokenizerFast

from matmix.experiments.task import Recipe, Task
from matmix.ranges import Amount, Chance, Count, Depth, Whole, numbers
from matmix.spec import hint
from sequence.encoder import Position
from sequence.language.config import MatmixConfig
from sequence.layers.block import Act
from sequence.layers.norms import Norm

TYPES = 2
"""Kinds of tokens: of the first text of a pair, and of the second."""


@dataclasses.dataclass(frozen=True)
class ModelSettings(Task):
    """Fields that both tasks have; `sequence.language.config.MatmixConfig` says more about each.

    Those of a checkpoint and of the task that begins at it are the same. The defaults are a small pre-norm encoder.
    """

    dim: Count = 64
    """Model width D."""
    depth: Depth = 2
    """Number of blocks."""
    heads: Count | None = None
    """Of each mixer that has the option and whose spec names neither heads nor head_dim; None leaves it to them."""
    mlp_ratio: Amount = 4.0
    """Hidden width of the perceptron over D; 0 leaves it out."""
    glu: bool = False
    """The perceptron is a gated unit."""
    act: Act = "gelu"
    """Activation of the perceptron."""
    position: Position = "learned"
    """Added to the embedding."""
    embedding_norm: bool = False
    """A layer norm behind the embedding."""
    embedding_projection: bool = False
    """A linear layer behind that."""
    norm: Norm = "layer"
    prenorm: bool = True
    """Norms before mixers and perceptrons, else behind the residual sums."""
    final_norm: bool = True
    """A norm behind the last block, where blocks are pre-norm."""
    conv: Whole = 0
    """Taps of a short convolution in front of each mixer."""
    dropout: Chance = 0.0
    """On the output of each mixer and perceptron."""
    embedding_dropout: Chance = 0.0
    """On the embedded tokens."""
    hidden_dropout: Chance = 0.0
    """On the hidden units of the perceptron."""
    padding: Literal["masked", "zeros"] = "masked"
    """"zeros": mixers read padding as zeros, as in Hydra's published models; its amount matters then."""
    embedding_std: Amount = 0.02
    """Of the initial weights of the embeddings and of the heads."""
    length: Annotated[int, numbers(3, 1e9, whole=True)] = 128
    """The most tokens of a text, special ones included: at least [CLS], a word and [SEP]."""
    cache: str = ""
    """Folder for prepared data; empty: that of the variable MATMIX_CACHE, else the platform's for caches."""
    protocol: str = ""
    """The published protocol that the recipe is from: what `--recipe NAME` sets, with all its settings."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """What turns text into ids; asked for often, so kept by whoever makes it."""
        raise NotImplementedError

    def config(self, mixer: str, seed: int, **more: Any) -> MatmixConfig:
        """The configuration of the model with this mixer."""
        if not mixer:
            raise ValueError("name the mixer, as in --mixer attention")
        tokens = self.tokenizer()
        return MatmixConfig(
            mixer=mixer,
            vocab_size=len(tokens),
            seed=seed,
            type_vocab_size=TYPES,
            delimiters=(tokens.cls_token_id, tokens.sep_token_id),
            pad_token_id=tokens.pad_token_id,
            **{name: getattr(self, name) for name in SHAPE},
            **more,
        )

    def protocols(self) -> Mapping[str, tuple[dict[str, Any], Recipe]]:
        """Settings and recipe of each published protocol."""
        return {}

    def plain_recipe(self) -> Recipe:
        """The recipe where no protocol is named."""
        raise NotImplementedError

    def recipe(self) -> Recipe:
        return self._published()[1] if self.protocol else self.plain_recipe()

    def _published(self) -> tuple[dict[str, Any], Recipe]:
        known = self.protocols()
        if self.protocol not in known:
            raise ValueError(
                f"{type(self).__name__}.protocol must be one of {', '.join(known) or 'none'}, got {self.protocol!r}"
            )
        return known[self.protocol]

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        if name == "default":
            return self, self.recipe()
        known = self.protocols()
        if name not in known:
            raise ValueError(f"unknown recipe {name!r}{hint(name, ['default', *known])}")
        settings, recipe = known[name]
        return dataclasses.replace(self, protocol=name, **settings), recipe

    def title(self) -> str:
        return self.protocol

    def as_published(self, recipe: Recipe) -> bool:
        """Whether all is as the protocol has it, the recipe too: then scores stand beside published ones."""
        if not self.protocol:
            return False
        settings, published = self._published()
        same = all(getattr(self, name) == value for name, value in settings.items())
        return same and _deciding(recipe) == _deciding(published)

    def protocol_facts(self) -> dict[str, Any]:
        """The protocol, and what is not as it has it."""
        if not self.protocol:
            return {}
        settings, _ = self._published()
        changed = [
            f"{name}={getattr(self, name)!r} instead of {value!r}"
            for name, value in settings.items()
            if getattr(self, name) != value
        ]
        return {"protocol": ", ".join([self.protocol, *changed])}


SHAPE = tuple(field.name for field in dataclasses.fields(ModelSettings) if field.name not in ("cache", "protocol"))
"""The settings that are fields of the configuration."""


def _deciding(recipe: Recipe) -> Recipe:
    """The recipe but for when it is logged, scored and saved, and in how many parts a batch is taken."""
    return dataclasses.replace(recipe, log_every=1, eval_every=1, checkpoint_every=1, eval_batch_size=1, accumulate=1)
