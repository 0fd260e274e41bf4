"""What the adapters of transformers' attention share: how a call is read, and how tokens are given back.

transformers itself is imported nowhere here: a model that is given brings it along.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matmix.adapters.base import Adapter, Call, parts_of
from matmix.adapters.rematrixed import SLOT
from matmix.adapters.site import Place, Site
from matmix.adapters.transformers_cache import held, state_layer
from matmix.adapters.transformers_masks import Seen, both, read_mask
from matmix.matrices.base import Matrix

NORM = ("LayerNorm", "output_dropout")  # what stays of an attention with its residual and norm inside
POSITIONS = (  # and of one that makes the bias of positions for all layers
    "relative_attention_bias", "relative_attention_num_buckets", "relative_attention_max_distance", "is_decoder",
    "_relative_position_bucket",
)  # fmt: skip
TOKENS = ("hidden_states", "query")  # the argument that brings the tokens; DistilBERT's before 5.0 is the second
MEMORY = ("encoder_hidden_states", "key_value_states")
MASKS = ("attention_mask", "causal_attention_mask", "mask")
CACHES = ("cache", "past_key_values", "past_key_value")  # the first from 5.24 on
# What any model hands down to its attention and says nothing to a mixer. Positions: a mixer has its own order.
HARMLESS = frozenset(
    {
        "position_embeddings", "position_ids", "cache_position", "use_cache", "output_hidden_states", "return_dict",
        "num_items_in_batch", "logits_to_keep", "sliding_window",
    }
)  # fmt: skip


class TransformersAttention(Adapter):
    """``attention(hidden_states (B, L, D), attention_mask, ...) -> (out, weights or None, ...)``, also by keyword."""

    understood = frozenset({*TOKENS, "key", "value", *MEMORY, *MASKS, *CACHES, "is_causal", "position_bias"})
    harmless = HARMLESS

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if site.named(args, kwargs).get("output_attentions"):
            raise ValueError(
                f"{site.name}: output_attentions asks for the weights of an attention that was replaced; "
                f"matmix.inspect.matrices(model, ...) shows the matrices of all sites"
            )
        given = self.arguments(site, args, kwargs)
        tokens, memory, cache = taken(given, TOKENS), taken(given, MEMORY), taken(given, CACHES)
        if "query" in given and given.get("key") is not tokens:
            memory = given["key"]
        kept = None if cache is None or memory is not None else held(cache, site)
        before = 0 if kept is None else kept.seen
        length = tokens.shape[1]
        columns = before + length if memory is None else memory.shape[1]
        seen = self.seen(site, given, length, columns, memory is not None)
        unfit = None
        if seen.pairs is not None:
            unfit = (
                f"the call's mask {tuple(seen.pairs.shape)} hides or weighs pairs of tokens (packed sequences, "
                f"a window, a bias): a mixer takes padding and causality"
            )
        keys = None if seen.keys is None else seen.keys.expand(tokens.shape[0], -1)
        if memory is not None:
            return Call(tokens, memory=memory, memory_mask=keys, unfit=unfit)
        mask = None if keys is None else keys[:, before:]
        positions = given.get("position_bias")
        if positions is not None and not site.options.get("positions"):
            raise ValueError(f"{site.name}: the call brings a position_bias, which nothing there has asked for")
        return Call(tokens, mask=mask, causal=seen.causal, unfit=unfit, held=kept, rest=_Rest(before, positions))

    def seen(self, site: Site, given: dict[str, Any], rows: int, columns: int, cross: bool = False) -> Seen:
        """What the masks of a call say; without one, what None means there."""
        masks = [given[name] for name in MASKS if name in given]
        expected = bool(site.causal) and not cross
        if not masks:
            causal = given.get("is_causal", site.options["none_is_causal"])
            return Seen(causal=bool(causal) and rows > 1 and not cross)
        found = Seen()
        for mask in masks:
            found = both(found, read_mask(mask, rows, columns, expected, site.name), site.name)
        return found

    def kept(self, module: nn.Module) -> dict[str, Any]:
        state_layer()
        names = NORM if normed(module) else POSITIONS if hasattr(module, "compute_bias") else ()
        kept = {name: getattr(module, name) for name in names if hasattr(module, name)}
        # A function of the class, for what has the attributes that it reads.
        return {**kept, "compute_bias": type(module).compute_bias} if "is_decoder" in kept else kept  # type: ignore[attr-defined]

    def answer(self, part: Any, call: Call, mixed: Tensor) -> Any:
        if part.site.options.get("normed"):
            mixed = part.LayerNorm(call.tokens + part.output_dropout(mixed))
        out = self.write(part.site, call, mixed)
        if not part.site.options.get("positions"):
            return out
        # The bias of positions says nothing to a mixer; the layers that come later need it.
        before, bias = call.rest
        rows, columns = mixed.shape[1], before + mixed.shape[1]
        if bias is None and hasattr(part, "relative_attention_bias"):
            bias = part.compute_bias(part, rows, columns, mixed.device, before)
        if bias is None:
            bias = mixed.new_zeros(1, part.site.heads, rows, columns)
        return (out[0], bias, *out[2:])

    def write(self, site: Site, call: Call, mixed: Tensor) -> Any:
        outputs = site.options["outputs"]
        return (mixed, *[None] * (outputs - 1)) if outputs else mixed


class _Rest(NamedTuple):
    """What ``answer`` needs of a call."""

    before: int  # tokens that a cache has seen
    positions: Tensor | None  # the bias of positions, of the first layer


def normed(module: nn.Module) -> bool:
    """Whether residual and norm are inside of an attention, after its output projection, as ALBERT has them."""
    return {"dense", *NORM} <= parts_of(module)


def taken(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these arguments that is there, else None."""
    for name in names:
        if name in given:
            return given[name]
    return None


def calls_interface(module: nn.Module) -> bool:
    """Whether an attention looks its function up in the library's registry."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    parent: Any = type(module).__mro__[2] if SLOT in module._modules else None  # its class is a subclass of ours
    if parent is not None:
        code = getattr(inspect.unwrap(parent.forward), "__code__", None)
    known = code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
    return known and hasattr(getattr(module, "config", None), "_attn_implementation")


def image(place: Place) -> tuple[int, tuple[int, ...] | None]:
    """Prefix tokens and the grid behind them, of a model of images; of others (0, None)."""
    embed = place.nearest("embeddings")
    patches = getattr(embed, "patch_embeddings", None)
    sizes = [getattr(patches, name, None) for name in ("image_size", "patch_size")]
    if getattr(embed, "cls_token", None) is None or not all(isinstance(size, tuple) for size in sizes):
        return 0, None
    names = ("cls_token", "distillation_token", "register_tokens")
    prefix = sum(token.shape[1] for name in names if (token := getattr(embed, name, None)) is not None)
    grid = tuple(whole // part for whole, part in zip(*sizes, strict=True))
    return (prefix, grid) if getattr(patches, "num_patches", None) == math.prod(grid) else (0, None)


def with_weights(out: Any, matrix: Matrix) -> Any:
    """What an attention gives back, its weights in the second place."""
    return (out[0], matrix.to_dense(), *out[2:]) if isinstance(out, tuple) else out


def crosses(place: Place) -> bool:
    """Whether an attention joins two sequences. One class may do both, told apart by where it stands alone."""
    around = next(place.around(), None)
    if getattr(around, "is_cross_attention", False):
        return True
    words = ("cross", "encdec", "encoder_attn")
    return any(word in part.lower() for part in place.name.split(".")[-2:] for word in words)


def outside(place: Place, own: nn.Module) -> str:
    """A note where the output projection is not in the module: BERT's stands beside ``attention.self``."""
    linears = [part for part in own.children() if hasattr(part, "in_features")]
    name = place.name.rpartition(".")[0]
    if len(linears) == 3 and isinstance(getattr(next(place.around(), None), "output", None), nn.Module):
        return f"its output projection stands outside, in {name}.output, and stays"
    return ""


@contextmanager
def quietly(module: nn.Module) -> Iterator[None]:
    """Inside, a module runs in eval mode, without gradients and hooks."""
    from matmix.adapters.discovery import unhooked

    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad(), unhooked(module):
            module.eval()
            yield
    finally:
        for part, training in modes:
            part.training = training
