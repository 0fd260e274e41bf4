"""BERT, RoBERTa, DistilBERT and ALBERT before transformers 5.0, which do not call the attention interface."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from matmix.adapters.base import Attended, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import CROSS, Place, Site
from matmix.adapters.softmax import heads_of, softmax_of
from matmix.adapters.transformers_attention import (
    CACHES,
    MEMORY,
    TransformersAttention,
    calls_interface,
    crosses,
    normed,
    outside,
    taken,
    with_weights,
)
from matmix.adapters.transformers_cache import twin_of
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import merge_heads

BERT = ("query", "key", "value")
DISTIL = ("q_lin", "k_lin", "v_lin")


@register_adapter
class TransformersPlain(TransformersAttention):
    """Projections by name, scores, masks and what comes after as those modules write them out."""

    name = "transformers_plain"

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        own, parameters = parts_of(module), parameters_of(module)
        bert, distil = own >= set(BERT), own >= {*DISTIL, "out_lin"}
        takes = parameters[:1] == ("hidden_states",) if bert else parameters[:4] == ("query", "key", "value", "mask")
        heads = getattr(module, "num_attention_heads", getattr(module, "n_heads", None))
        if not (bert or distil) or not takes or not isinstance(heads, int) or calls_interface(module):
            return None
        entry = module.query if bert else module.q_lin
        if not hasattr(entry, "in_features") or entry.out_features % heads:
            return None
        inside = bert and normed(module)
        cross = crosses(place)
        refused: dict[Any, str] = {}
        if cross:
            refused["module"] = CROSS
        elif entry.out_features != entry.in_features:
            refused["module"] = f"its outputs are {entry.out_features} wide, its inputs {entry.in_features}"
        decoder = bool(getattr(module, "is_decoder", False)) and not cross
        fused = hasattr(module, "dropout_prob")  # what calls scaled_dot_product_attention: no mask may be causal there
        return self.known(
            place,
            "cross_attention" if cross else "self_attention",
            entry.in_features,
            heads=heads,
            head_dim=entry.out_features // heads,
            causal=False if cross else True if decoder else None,
            refused=refused,
            note="its residual and norm stay" if inside else outside(place, module),
            options={
                # BERT gives weights or None beside the tokens, the others the tokens alone.
                "outputs": 1 if inside or distil else 2,
                "none_is_causal": decoder and fused,
                "fused": fused,
                "normed": inside,
                "layer": getattr(module, "layer_idx", None),
            },
        )

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        given = self.arguments(site, args, {**kwargs, "output_attentions": None})
        names = BERT if hasattr(module, BERT[0]) else DISTIL
        if names is BERT:
            tokens = given["hidden_states"]
            memory = taken(given, MEMORY)
            keys = values = tokens if memory is None else memory
        else:
            tokens, keys, values = given["query"], given["key"], given["value"]
        query, key, value = (
            heads_of(getattr(module, name)(x), site.heads or 1)
            for name, x in zip(names, (tokens, keys, values), strict=True)
        )
        cache = taken(given, CACHES)
        cache = None if keys is not tokens else getattr(cache, "self_attention_cache", cache)
        new, layer = (key, value), site.options["layer"]
        if cache is not None:  # written to in finish, once
            key, value = twin_of(cache, site).update(*new, layer)
        seen = self.seen(site, given, query.shape[2], key.shape[2], keys is not tokens)
        matrix = softmax_of(query, key, attn_mask=seen.pairs, causal=seen.causal)
        if seen.keys is not None:
            matrix = Softmax(query, key, mask=seen.keys, bias=matrix.bias, causal=seen.causal)
        dropout = getattr(module, "dropout", getattr(module, "attention_dropout", None))

        def finish(mixed: Tensor) -> Any:
            if cache is not None:
                cache.update(*new, layer)
            out = merge_heads(mixed)
            if names is DISTIL:
                out = module.out_lin(out)
            elif site.options["outputs"] == 1:
                out = module.LayerNorm(tokens + module.output_dropout(module.dense(out)))
            return (out, *[None] * (site.options["outputs"] - 1))

        weights = with_weights if kwargs.get("output_attentions") else None
        return Attended(matrix, value, finish, getattr(dropout, "p", 0.0), weights=weights)

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if site.parameters[0] == "query":
            mask = None if site.options["fused"] else tokens.new_ones(tokens.shape[:2])
            return (), {"query": tokens, "key": tokens, "value": tokens, "mask": mask}
        memory = {"encoder_hidden_states": tokens} if site.kind == "cross_attention" else {}
        return (), {"hidden_states": tokens, **memory}
