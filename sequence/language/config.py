"""The configuration of the language models: data alone, written to and read from `config.json`."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, ClassVar, get_args

from transformers import PretrainedConfig

from matmix.mixers import layer_specs, mixer_info
from matmix.mixers.options import checking_options
from matmix.ranges import Amount, Chance, Count, Depth, Positive, Seed, Whole, numbers, one_of, or_none, refuse
from matmix.spec import Spec
from sequence.encoder import Position
from sequence.layers.block import ACTS
from sequence.layers.norms import NORMS

THEIRS = {
    "num_labels": or_none(numbers(0, 1e9, whole=True)),
    "problem_type": or_none(one_of("regression", "single_label_classification", "multi_label_classification")),
}
"""What options of transformers may be that our heads read; it does not check them all."""
POOLS = ("first", "mean", "max", "last")


class MatmixConfig(PretrainedConfig):
    """What a model is made of. The fields are options of `sequence.encoder.Encoder`, under its names, and those of the
    heads; transformers' own names (`hidden_size`, `num_hidden_layers`, ...) read and set the same fields.

    The defaults are a pre-norm encoder of 12 blocks; `docs/language-models.md` writes down BERT's, Hydra's, PoNet's and
    FNet's shapes in these fields.

    Args:
        mixer: spec of the mixer, such as "hydra(expand=2)", or a pattern that is tiled over the depth, "ssd*3,
            attention". It is read as data, with `ast`, and never evaluated.
        vocab_size: number of token ids.
        dim: model width D (`hidden_size`).
        depth: number of blocks (`num_hidden_layers`).
        heads: heads of each mixer that has an option `heads` and whose spec names neither `heads` nor `head_dim`
            (`num_attention_heads`); None leaves them to the mixers.
        length: the longest text in tokens (`max_position_embeddings`): learned positions reach so far, and mixers of
            fixed length are built for it. Without either a text may be longer.
        mlp_ratio: hidden width of the perceptron over D; 0 leaves it out.
        glu: the perceptron is a gated unit.
        act: its activation, "gelu", "gelu_tanh", "relu" or "silu" (`hidden_act`).
        position: "none", "learned" or "sinusoidal", added to the embedding. Padding counts as no place.
        type_vocab_size: kinds of tokens (`token_type_ids`), such as first and second sentence; 0 for none.
        embedding_norm: a layer norm behind the embedding, with BERT's eps of 1e-12.
        embedding_projection: a linear layer behind that (FNet).
        norm: "layer", "rms", "batch" or "scale".
        norm_eps: of the norms of blocks (`layer_norm_eps`); None leaves each norm its own, 1e-5 for "layer".
        prenorm: norms before mixers and perceptrons, else behind the residual sums.
        final_norm: a norm behind the last block, where blocks are pre-norm.
        conv: taps of a short convolution in front of each mixer.
        delimiters: token ids that part the segments of `ponet`, BERT's (101, 102) in its pretrained models.
        pad_to: "length": where a mixer's result hangs on the padded length (fixed lengths, FFTs: traits.mask is
            "content"), every text is padded to `length` inside the model, so that what a batch is padded to changes no
            result. "batch": such a mixer mixes the places that the batch has, as the published FNet does; those of
            fixed length then need texts of `length`. Other mixers (traits.mask is "trim") do the same either way.
        padding: "masked", or "zeros": mixers read padding as zeros, as in Hydra's published models, whose results hang
            on how much there is.
        dropout: on the output of each mixer and perceptron (`hidden_dropout_prob`).
        embedding_dropout: on the embedded tokens.
        hidden_dropout: on the hidden units of the perceptron.
        classifier_dropout: on what a classifier reads.
        embedding_std: of the initial weights of the embeddings and of the heads (`initializer_range`).
        pool: what a sequence classifier reads: "first" of the real tokens, "last", the "mean" or the "max" of them; by
            default the first, and the last where all mixers are causal.
        pooler: and that through a linear layer and a tanh (BERT).
        transform: the masked language head has a linear layer, `act` and a layer norm before the decoder (BERT).
        tie_word_embeddings: the decoder has the weights of the embedding.
        seed: of the initial weights: two models that differ in their mixer alone agree in all the rest. None draws one
            from torch's generator, so `torch.manual_seed` and transformers' `set_seed` decide.
    """

    model_type = "matmix"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "max_position_embeddings": "length",
        "hidden_act": "act",
        "hidden_dropout_prob": "dropout",
        "initializer_range": "embedding_std",
        "layer_norm_eps": "norm_eps",
    }

    @checking_options
    def __init__(
        self,
        mixer: str = "attention(head_dim=64)",
        vocab_size: Count = 30522,
        dim: int = 768,
        depth: Depth = 12,
        heads: int | None = None,
        length: Count = 512,
        mlp_ratio: Amount = 4.0,
        glu: bool = False,
        act: str = "gelu",
        position: str = "learned",
        type_vocab_size: Whole = 2,
        embedding_norm: bool = False,
        embedding_projection: bool = False,
        norm: str = "layer",
        norm_eps: Positive | None = None,
        prenorm: bool = True,
        final_norm: bool = True,
        conv: Whole = 0,
        delimiters: tuple[Whole, ...] = (),
        pad_to: str = "length",
        padding: str = "masked",
        dropout: float = 0.0,
        embedding_dropout: Chance = 0.0,
        hidden_dropout: Chance = 0.0,
        classifier_dropout: Chance = 0.0,
        embedding_std: Amount = 0.02,
        pool: str | None = None,
        pooler: bool = True,
        transform: bool = True,
        tie_word_embeddings: bool = True,
        seed: Seed | None = None,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        given = dict(locals())
        for name in FIELDS:
            setattr(self, name, given[name])
        self.delimiters = list(delimiters)  # JSON has no tuples
        self._check()
        for name, kind in THEIRS.items():
            if not kind.holds(kwargs.get(name)):
                raise refuse(f"MatmixConfig.{name}", kind, kwargs[name])
        kwargs |= {"pad_token_id": pad_token_id, "tie_word_embeddings": tie_word_embeddings}
        super().__init__(**kwargs)

    def _check(self) -> None:
        """Errors that name the field. What the blocks and mixers check themselves is left to them."""
        for name, value, allowed in (
            ("act", self.act, tuple(ACTS)), ("position", self.position, get_args(Position)),
            ("norm", self.norm, tuple(NORMS)), ("pool", self.pool or POOLS[0], POOLS),
            ("pad_to", self.pad_to, ("length", "batch")),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"MatmixConfig.{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.specs()

    def specs(self) -> list[Spec]:
        """The spec of each block, `heads` put in where it belongs.

        Raises:
            ValueError: for a spec that cannot be read, of unknown mixers, or whose pattern does not fit the depth.
        """
        return [self._with_heads(spec) for spec in layer_specs(self.mixer, self.depth)]

    def _with_heads(self, spec: Spec) -> Spec:
        options = inspect.signature(mixer_info(spec.name).cls).parameters
        if self.heads is None or "heads" not in options or {"heads", "head_dim"} & {name for name, _ in spec.options}:
            return spec
        return replace(spec, options=(*spec.options, ("heads", self.heads)))


FIELDS = [
    name for name in inspect.signature(MatmixConfig.__init__).parameters
    if name not in ("self", "kwargs", "pad_token_id", "tie_word_embeddings")
]  # fmt: skip
