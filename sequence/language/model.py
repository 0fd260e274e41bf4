"""The encoder as a model of transformers."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from matmix.mixers.calls import Input, explain_inputs, explaining, is_said
from matmix.ops.masks import in_order, padding_last
from matmix.ops.private import in_jit_trace
from matmix.ops.seed import fork_seed
from matmix.ops.sizes import LengthError
from matmix.ranges import shown
from sequence.encoder import Encoder, check_order
from sequence.language.checkpoints import of_hydra, of_ponet, of_transformers
from sequence.language.config import MatmixConfig
from sequence.language.heads import Decoder, Drawn, Pooler
from sequence.layers.block import Block


class MatmixPreTrainedModel(PreTrainedModel):
    """What all models here share: names, and what transformers asks of a model."""

    config_class = MatmixConfig
    base_model_prefix = "matmix"
    supports_gradient_checkpointing = True
    published: ClassVar = {
        "goombalab/hydra": of_hydra, "lxchtan/PoNet": of_ponet, "huggingface/transformers": of_transformers,
    }  # fmt: skip
    _no_split_modules = ["RecomputedBlock"]  # noqa: RUF012  # transformers declares it of instances

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = explaining(cls.forward)

    def explain(self, error: Exception, method: str, given: dict[str, Any]) -> None:
        """After an error in a forward: one in its place that says which argument did not fit."""
        if is_said(error):
            return
        mask, cache = given.get("attention_mask"), given.get("cache", given.get("past_key_values"))
        kind = torch.int64 if isinstance(mask, Tensor) and not (mask.is_floating_point() or mask.is_complex()) else None
        kind = torch.bool if isinstance(mask, Tensor) and mask.dtype == torch.bool else kind
        whole = Input("B L", torch.int64)
        wanted = {
            "input_ids": whole, "inputs_embeds": Input("B L D"), "token_type_ids": whole, "segment_ids": whole,
            "attention_mask": Input("B L" if cache is None else "B all", kind), "places": Input("B L", torch.bool),
        }  # fmt: skip
        explain_inputs(self, error, wanted, given, D=self.config.dim)

    def _init_weights(self, module: nn.Module) -> None:
        """The encoder has drawn its own weights under its seed; those of heads are drawn here."""
        if isinstance(module, Drawn):
            seed = self.config.seed
            with nullcontext() if seed is None else fork_seed(seed, f"head.{module.part}"):
                module.reset(self.config.embedding_std)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own, and strict: heads may be new or left over, every weight of the encoder is in its place.
        With `ignore_mismatched_sizes` a head of another shape is drawn anew.

        Raises:
            ValueError: for weights that lack, fit no place or have another shape; it names them.
        """
        # transformers' error for a shape names the weight in a log only, so the shapes are looked at here.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        shapes, problems = {name: tuple(value.shape) for name, value in model.state_dict().items()}, []
        for kind in ("missing", "unexpected", "mismatched"):
            names = {name if isinstance(name, str) else name[0] for name in info[f"{kind}_keys"]}
            if kind != "mismatched" or ignore_mismatched_sizes:
                names = {name for name in names if not name.removeprefix("matmix.").startswith(HEADS)}
            listed = sorted(f"{name} {shapes[name]}" if kind == "mismatched" else name for name in names)
            problems += [f"{SAID[kind]}: {', '.join(listed)}"] if listed else []
        if problems:
            raise ValueError(
                f"{cls.__name__} cannot load {pretrained_model_name_or_path}: {'; '.join(problems)}. Is the "
                "configuration that of the weights (mixer, vocab_size, dim, depth)?"
            )
        return (model, info) if output_loading_info else model

    def _as_dict(self, asked: bool | None) -> bool:
        return bool(self.config.return_dict if asked is None else asked)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; a decoder follows."""
        embedding: Any = super().resize_token_embeddings(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Decoder):
                module.resize(embedding.weight)
        return embedding


HEADS = ("pooler.", "transform.", "decoder.", "classifier.", "relation.")
"""What the weights of heads are named; all others are the encoder's."""
SAID = {
    "missing": "the checkpoint lacks",
    "unexpected": "the model has no place for",
    "mismatched": "of another shape than the model's",
}


class RecomputedBlock(GradientCheckpointingLayer, Block):
    """A block that keeps its inputs alone and runs a second time in the backward pass, where that is enabled."""


class MatmixModel(MatmixPreTrainedModel):
    """Token ids to the tokens of the last block, and where `pooler` is asked for to one vector a text.

    What stands at padding is not read, and padding on either side changes no result: the real tokens of a text have the
    same outputs in every batch.
    """

    def __init__(self, config: MatmixConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        seed = int(torch.randint(2**31, (), device="cpu")) if config.seed is None else config.seed
        options = ("mlp_ratio", "glu", "act", "position", "type_vocab_size", "embedding_norm", "embedding_projection",
                   "norm", "norm_eps", "padding", "prenorm", "final_norm", "conv", "dropout", "embedding_dropout",
                   "hidden_dropout", "embedding_std")  # fmt: skip
        self.encoder = Encoder(
            partial(nn.Embedding, config.vocab_size, config.dim),
            ", ".join(map(str, config.specs())),
            dim=config.dim,
            depth=config.depth,
            grid=(config.length,),
            head="none",
            outputs=0,
            delimiters=tuple(config.delimiters),
            block=RecomputedBlock,
            seed=seed,
            **{name: getattr(config, name) for name in options},
        )
        traits = [mixer.traits for mixer in self.encoder.mixers]
        # Whose results hang on the padded length: those of fixed length have no other, FFTs take each for its own.
        self.pads = config.pad_to == "length" and any(t.mask != "trim" or t.length == "fixed" for t in traits)
        self.pooler = None
        if add_pooling_layer:
            how = config.pool or ("last" if all(t.causal for t in traits) else "first")
            check_order(self.encoder.mixers, "none", how)
            self.pooler = Pooler(config, how)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPooling:
        """Args:
            input_ids: (B, L) integers, or `inputs_embeds` (B, L, D) in their place.
            attention_mask: (B, L), 1 = a real token.
            token_type_ids: (B, L), where the configuration has `type_vocab_size`.
            segment_ids: (B, L) integers 0, 1, ..., the segments of `ponet`.
            output_hidden_states: also give what each block reads, and what the last one gives.

        Raises:
            ValueError: for ids that the vocabulary does not have and texts that are too long.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions: not every mixer has one; matmix.record(model) shows what they multiply by"
            )
        x, mask = self.check_input(input_ids, inputs_embeds), self.check_mask(attention_mask)
        token_type_ids = self.check_types(token_type_ids)
        length, back = x.shape[1], None
        if self.pads:
            x, mask, back, (token_type_ids, segment_ids) = self._padded(x, mask, token_type_ids, segment_ids)
        want = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers: list[Tensor] | None = [] if want else None
        tokens = self.encoder.encode(
            x, mask, types=token_type_ids, sentences=segment_ids, embedded=inputs_embeds is not None, layers=layers
        )
        pooled = None if self.pooler is None else self.pooler(tokens, mask)
        if back is not None:
            tokens = unpadded(tokens, back, length)
            layers = None if layers is None else [unpadded(layer, back, length) for layer in layers]
        output = BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=None if layers is None else tuple(layers),
        )
        return output if self._as_dict(return_dict) else output.to_tuple()

    def check_input(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (ids is None) == (embeds is None):
            raise ValueError("the model takes one of both: give one of input_ids and inputs_embeds")
        x = embeds if ids is None else ids
        assert x is not None
        if x.dim() != (3 if ids is None else 2):
            raise ValueError(f"input_ids must be (B, L), inputs_embeds (B, L, {self.config.dim}), got {tuple(x.shape)}")
        return x

    def check_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """The attention mask as the mixers take it; None where nothing is padded, which they do faster."""
        if attention_mask is None:
            return None
        if attention_mask.dim() != 2:
            raise ValueError(f"attention_mask must be (B, L), 1 = a real token, got {tuple(attention_mask.shape)}")
        mask = attention_mask != 0
        # For a look at the numbers a GPU would wait, and a graph would break.
        traced = torch.compiler.is_compiling() or in_jit_trace()
        return None if mask.device.type == "cpu" and not traced and bool(mask.all()) else mask

    def check_types(self, types: Tensor | None) -> Tensor | None:
        """Kinds of tokens as the encoder takes them. Tokenizers give zeros to models that know no kinds as well."""
        if types is None or self.config.type_vocab_size:
            return types
        traced = torch.compiler.is_compiling() or in_jit_trace()
        if not traced and (not isinstance(types, Tensor) or bool(types.any())):
            raise ValueError(
                f"token_type_ids must be a tensor of 0, got {shown(types)}: this model has type_vocab_size=0. Build it "
                "with 2, or have the tokenizer leave them out (tokenizer.model_input_names)"
            )
        return None

    def _padded(
        self, x: Tensor, mask: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor | None]]:
        """Texts at the front of `length` places, and the order that brings their tokens back."""
        length, wanted = x.shape[1], self.config.length
        if mask is None and length == wanted:
            return x, None, None, list(others)
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        order = padding_last(mask)
        back = order.argsort(1)
        mask = mask.gather(1, order)
        if length > wanted and bool(mask[:, wanted:].any()):
            raise LengthError(
                f"input_ids: {int(mask.sum(1).max())} tokens, and the model reaches length={wanted}: cut the text, "
                "or build the model for a longer one"
            )
        moved = [None if other is None else fitted(in_order(other, order), wanted) for other in (x, *others)]
        assert moved[0] is not None
        return moved[0], fitted(mask, wanted), back, moved[1:]


def fitted(tokens: Tensor, length: int) -> Tensor:
    """Tokens (B, L, ...) cut to or padded with zeros to `length`."""
    tokens = tokens[:, :length]
    return nn.functional.pad(tokens, (0, 0) * (tokens.dim() - 2) + (0, length - tokens.shape[1]))


def unpadded(tokens: Tensor, back: Tensor, length: int) -> Tensor:
    """Tokens (B, L, ...) of `fitted` texts in their old places."""
    return in_order(fitted(tokens, length), back)
