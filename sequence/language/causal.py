"""Causal language models: a text goes on token by token, from the mixers' state where they have one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from matmix.ranges import shown
from sequence.encoder import EncoderState, check_order
from sequence.language.config import MatmixConfig
from sequence.language.heads import Decoder
from sequence.language.losses import IGNORED, check_labels, token_loss
from sequence.language.model import MatmixModel
from sequence.language.tasks import WithDecoder

NEW = "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if NEW else "past_key_values"
"""What `generate` calls what a model has read, in this version of transformers."""


class MixerCache:
    """What a model has read of a batch of texts: the state of its mixers, of the same size after any number of tokens.

    Made by `MatmixForCausalLM`; a model never changes one, it gives a new one.
    """

    is_compileable = is_croppable = False  # transformers asks: a state cannot go back to an earlier token
    is_linear = (True,)

    def __init__(self, state: EncoderState, length: int) -> None:
        self.state, self.length = state, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch that were read, padding included."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these texts of the batch, as beam search does."""
        self.state = pytree.tree_map_only(Tensor, lambda part: part[beam_idx.to(part.device)], self.state)


class MatmixForCausalLM(WithDecoder, GenerationMixin):
    """Says the next token, by causal mixers; others are refused.

    `generate` reads a prompt once and then token by token where every mixer is recurrent, else all again for each
    token.
    """

    _is_stateful = True  # no assisted generation, which goes back

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.matmix = MatmixModel(config, add_pooling_layer=False)
        check_order(self.matmix.encoder.mixers, "language", None)
        self.recurrent = not self.matmix.pads and all(mixer.traits.recurrent for mixer in self.matmix.encoder.mixers)
        self.decoder = Decoder(config, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cache: MixerCache | None = None,
        past_key_values: MixerCache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Any, ...] | CausalLMOutputWithPast:
        """Logits (B, L, V) of the token that follows on each. `MatmixModel` says what is read.

        Args:
            attention_mask: (B, L), or with a cache (B, all columns so far and L).
            labels: (B, L), the texts themselves: each token is scored by what the one before it says; -100 is not.
            cache: what was read before, of an earlier output; `past_key_values` is its name in transformers 4.
            use_cache: also give what has been read by now, where all mixers are recurrent.
        """
        cache = past_key_values if cache is None else cache
        if not isinstance(cache, MixerCache | None):
            raise ValueError(f"{CACHE} must be a MixerCache, as an earlier output has it, or None, got {shown(cache)}")
        use_cache, hidden, after = bool(use_cache) and self.recurrent and not output_hidden_states, None, None
        if cache is None and not use_cache:
            read = self.matmix(
                input_ids, attention_mask, token_type_ids, None, inputs_embeds, output_attentions,
                output_hidden_states, return_dict=True,
            )  # fmt: skip
            tokens, hidden = read.last_hidden_state, read.hidden_states
        else:
            if output_hidden_states:
                raise ValueError("output_hidden_states: what was read before is a state, without tokens: give no cache")
            tokens, after = self._read_on(input_ids, inputs_embeds, attention_mask, token_type_ids, cache)
        logits, loss = self.decoder(tokens, self.get_input_embeddings().weight), None
        if labels is not None:
            check_labels(labels, logits.shape[:-1])
            following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            loss = token_loss(logits, following, num_items_in_batch)
        kept: dict[str, Any] = {CACHE: after} if use_cache else {}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden, **kept)
        return output if self._as_dict(return_dict) else output.to_tuple()

    def _read_on(
        self,
        ids: Tensor | None,
        embeds: Tensor | None,
        attention_mask: Tensor | None,
        types: Tensor | None,
        cache: MixerCache | None,
    ) -> tuple[Tensor, MixerCache]:
        """Tokens that follow on a cache, or on nothing, and the cache after them."""
        encoder, x = self.matmix.encoder, self.matmix.check_input(ids, embeds)
        if not self.recurrent:
            raise ValueError("cache: the mixers of this model keep no state; leave it out and give the whole text")
        count, seen = x.shape[1], 0 if cache is None else cache.length
        if attention_mask is not None and attention_mask.shape[-1] > count:
            attention_mask = attention_mask[:, -count:]
        mask, types = self.matmix.check_mask(attention_mask), self.matmix.check_types(types)
        state = None if cache is None else cache.state
        if cache is not None and count == 1 and mask is None and types is None and embeds is None:
            out, after = encoder.step(x[:, 0], cache.state)
            return out.unsqueeze(1), MixerCache(after, seen + 1)
        out, after = encoder.prefill(x, mask=mask, state=state, types=types, embedded=embeds is not None)
        return out, MixerCache(after, seen + count)

    # ------------------------------------------------------------------ what `generate` asks

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # no keys and values: the cache is made by the first forward

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """What the next forward reads: all there is, or what came after the cache."""
        cache: MixerCache | None = rest.get(CACHE)
        seen = 0 if cache is None else cache.length
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if inputs_embeds is not None:  # they are the prompt, and input_ids what was said since
            prompt = inputs_embeds.shape[1]
            inputs = {"input_ids": input_ids[:, seen - prompt :]}
            if seen < prompt:
                said = self.get_input_embeddings()(input_ids)
                inputs = {"inputs_embeds": torch.cat((inputs_embeds, said), 1)[:, seen:]}
        elif seen:
            # A text may be given whole with its cache, or what is new alone.
            columns = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
            inputs = {"input_ids": input_ids[:, seen - columns :] if columns > seen else input_ids[:, -1:]}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids[:, seen:]
        inputs |= {"attention_mask": attention_mask, CACHE: cache, "use_cache": use_cache}
        return inputs | {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
