"""transformers' attention interface: one adapter for all attention that goes through it.

Such a module projects to queries, keys and values, calls a function that the library looks up by a name in its config,
and projects out. The function of ours has a name of its own there, and only the modules of replaced sites have a config
that says so: a copy, so that the masks which the model makes stay those that it made before (a model that is told of an
own function as a whole leaves its masks out, and its decoders see the future).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters.base import Attended, Setting, entries, parameters_of
from matmix.adapters.registry import adapter_named, register_adapter
from matmix.adapters.rematrixed import SLOT, Structured
from matmix.adapters.site import CROSS, Place, Site
from matmix.adapters.softmax import softmax_of
from matmix.adapters.transformers_attention import (
    CACHES,
    HARMLESS,
    MEMORY,
    TransformersAttention,
    calls_interface,
    crosses,
    image,
    normed,
    outside,
    quietly,
    with_weights,
)
from matmix.adapters.transformers_cache import twin_of
from matmix.adapters.transformers_masks import Seen, read_mask
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import merge_heads

NAME = "matmix"  # of the function
INSTEAD = "matmix_instead"  # an attribute of a module: what the function does there, in place of its matrix
LENGTH = 3  # of the tokens of the first look
# What the function may be told besides; position_bias is added to the scores.
TOLD = HARMLESS | {"is_causal", "head_mask", "position_bias", "softcap", "output_attentions", "hidden_states"}


@register_adapter
class TransformersInterface(TransformersAttention):
    """Attention that calls ``ALL_ATTENTION_FUNCTIONS``: from 5.0 nearly all, Llama, ViT and PatchTST long before."""

    name = "transformers"

    def __reduce__(self) -> Any:
        return _joined, ()  # a module that was loaded from a file looks the function up

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        parameters = parameters_of(module)
        entry = next((part for part in module.children() if isinstance(getattr(part, "weight", None), Tensor)), None)
        if not calls_interface(module) or parameters[:1] != ("hidden_states",) or entry is None:
            return None
        dim = getattr(entry, "in_features", entry.weight.shape[0])  # GPT-2's Conv1D says it by its weight alone
        cross = crosses(place)
        prefix, grid = image(place)
        first = self.known(
            place,
            "cross_attention" if cross else "self_attention",
            dim,
            length=None if grid is None else prefix + math.prod(grid),
            grid=grid,
            prefix=prefix,
            note=outside(place, module),
            options={"rotary": _rotary(place), "layer": getattr(module, "layer_idx", None)},
        )
        return _looked(self, first, module, entry)

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs: dict[str, Any] = {"hidden_states": tokens}
        for name in site.parameters:
            if name == "position_embeddings" and site.options["rotary"]:
                half = torch.arange(site.options["rotary"] // 2, device=tokens.device, dtype=torch.float32)
                angle = torch.arange(tokens.shape[1], device=tokens.device).outer(torch.exp(-half))
                angle = torch.cat((angle, angle), -1)[None].to(tokens.dtype)
                kwargs[name] = (angle.cos(), angle.sin())
            elif name in MEMORY and site.kind == "cross_attention":
                kwargs[name] = tokens
            elif name == "attention_mask":
                kwargs[name] = None
        return (), kwargs

    def settings(self, site: Site, place: Place) -> Iterable[Setting]:
        if not calls_interface(place.module):
            return ()
        return (Setting(place.module, "config", _config(place.module)),)

    def run(
        self, structured: Structured, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        return forward(*args, **kwargs)  # it calls the function, which finds the matrix

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        """By two runs of the module: one to see what it asks of the function, and in ``finish`` one to answer it."""
        given = site.named(args, kwargs)
        asked: list[Attended] = []

        def note(found: Attended) -> Tensor:
            asked.append(found)
            batch, heads, rows, _ = found.matrix.shape
            return found.values.new_zeros(max(batch, found.values.shape[0]), heads, rows, found.values.shape[3])

        twins = {name: twin_of(value, site) if name in CACHES else value for name, value in given.items()}
        _through(module, note, twins)
        if len(asked) != 1:
            raise ValueError(f"{site.name}: it asks for attention {len(asked)} times in a call, not once")
        eager = getattr(module.config, "matmix_before", module.config._attn_implementation) == "eager"
        return asked[0]._replace(
            finish=lambda mixed: _through(module, lambda found: mixed, given),
            weights=with_weights if eager or given.get("output_attentions") else None,
        )


def _joined() -> TransformersInterface:
    _register()
    return adapter_named(TransformersInterface.name)  # type: ignore[return-value]


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def _config(module: Any) -> Any:
    """A copy of a module's config that names the function of ours, and says what was named before."""
    _register()
    config = copy.copy(module.config)
    # Not by the property: it writes into the configs of parts, which the copy shares.
    before = config.__dict__.get("_attn_implementation_internal")
    if before != NAME:
        config.__dict__["matmix_before"] = before
        config.__dict__["_attn_implementation_internal"] = NAME
    return config


def _through(module: Any, instead: Callable[[Attended], Tensor], kwargs: dict[str, Any]) -> Any:
    """The module's forward, in which the function does this instead."""
    config = module.config
    module.__dict__["config"], module.__dict__[INSTEAD] = _config(module), instead
    try:
        return type(module).forward(module, **kwargs)  # an attribute "forward" may be a recording of this
    finally:
        module.__dict__["config"] = config
        del module.__dict__[INSTEAD]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **told: Any,
) -> tuple[Tensor, Tensor | None]:
    """The library's function: queries ``(B, H, L, E)``, keys and values ``(B, Hk, S, .)``, to ``(B, L, H, W)``.

    Raises:
        ValueError: for what it does not understand, with the site's name.
    """
    structured: Any = module._modules.get(SLOT)
    instead = getattr(module, INSTEAD, None)
    where = type(module).__name__ if structured is None else structured.site.name
    strange = [name for name, what in told.items() if name not in TOLD and what is not None and what is not False]
    if told.get("head_mask") is not None:
        strange.append("head_mask")
    if strange:
        raise ValueError(f"{where}: attention is told of {', '.join(strange)}, which the adapter does not understand")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    expected = _causal(module, told)
    before = getattr(module.config, "matmix_before", None)
    seen = Seen(causal=expected and query.shape[2] > 1 and before != "eager")
    if attention_mask is not None:
        if before == "eager" and instead is not None and attention_mask.dtype == torch.bool and structured is None:
            raise ValueError(f"{where}: eager attention adds a bool mask to its scores as numbers: give one of floats")
        seen = read_mask(attention_mask, query.shape[2], key.shape[2], expected, where)
    bias = told.get("position_bias")
    if told.get("softcap") and before != "sdpa":  # whose function does without
        bias = _capped(query, key, scaling, told["softcap"], bias)
    matrix = _matrix(query, key, scaling, seen, bias)
    found = Attended(matrix, value, lambda mixed: mixed, dropout, positional=seen.pairs is None)
    if instead is not None:
        return instead(found).transpose(1, 2), None
    if structured is None:  # a module that was taken out and is run by itself: what it was
        return entries(found, module.training).matmul(value).transpose(1, 2).contiguous(), None
    other, values = structured(found)
    ran = entries(found.other(other, values), module.training)
    weights = ran.to_dense() if told.get("output_attentions") else None
    return ran.matmul(values).transpose(1, 2).contiguous(), weights


def _causal(module: Any, told: dict[str, Any]) -> bool:
    """Whether no mask means causal: the rule of the library's ``sdpa``."""
    said = told.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _capped(query: Tensor, key: Tensor, scaling: float | None, cap: float, bias: Tensor | None) -> Tensor:
    """What is added to scores for them to be ``cap tanh(scores / cap)``, Gemma's."""
    scores = query @ key.mT * (query.shape[3] ** -0.5 if scaling is None else scaling)
    less = cap * torch.tanh(scores / cap) - scores
    return less if bias is None else less + bias


def _matrix(query: Tensor, key: Tensor, scaling: float | None, seen: Seen, bias: Tensor | None) -> Softmax:
    made = softmax_of(query, key, factor=scaling, attn_mask=seen.pairs, bias=bias, causal=seen.causal)
    if seen.keys is None:
        return made
    return Softmax(query, key, mask=seen.keys, bias=made.bias, factor=scaling, causal=seen.causal)


def _rotary(place: Place) -> int:
    """Width of the rotary positions that a call brings; 0: none."""
    if "position_embeddings" not in parameters_of(place.module):
        return 0
    embed = place.nearest("rotary_emb")
    try:
        with torch.no_grad():
            tokens, positions = torch.zeros(1, LENGTH, 1), torch.arange(LENGTH)[None]
            return embed(tokens, positions)[0].shape[-1]
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return int(getattr(place.module, "head_dim", 0))


def _looked(adapter: TransformersInterface, site: Site, module: Any, entry: Any) -> Site | None:
    """The site with what a small call tells: heads, what comes out, whether it may go as a whole."""
    weight = entry.weight
    tokens = torch.arange(2 * LENGTH * site.dim, dtype=torch.float64).mul(7.7).sin().view(2, LENGTH, site.dim)
    args, kwargs = adapter.sample(site, tokens.to(weight.device, weight.dtype))
    try:
        with quietly(module):
            found = adapter.attended(site, module, args, kwargs)
            shape = (2, *found.matrix.shape[1:3], found.values.shape[3])
            wave = torch.arange(2 * LENGTH * shape[1] * shape[3], dtype=torch.float64).cos()
            mixed = wave.view(shape).to(weight.device, weight.dtype)
            outs = [found.finish(one) for one in (mixed, 0 * mixed, -mixed)]
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return None
    outputs = len(outs[0]) if isinstance(outs[0], tuple) else 0
    rest: tuple[Any, ...] = outs[0][1:] if outputs else ()
    first = [out[0] if outputs else out for out in outs]
    # Of T5: the bias of positions, which the first layer makes for all.
    positions = "position_bias" in site.parameters and outputs == 3 and rest[1] is None
    with quietly(module):
        inside = normed(module) and _same(
            first[0], module.LayerNorm(tokens.to(weight) + module.dense(merge_heads(mixed)))
        )
    refused: dict[Any, str] = {}
    if any(part is not None for part in rest) and not positions:
        refused["module"] = "it gives back more than tokens and weights, and later layers need it"
    elif first[0].shape[-1] != site.dim:
        refused["module"] = f"its outputs are {first[0].shape[-1]} wide, its inputs {site.dim}: a mixer keeps the width"
    elif site.kind == "cross_attention":
        refused["module"] = CROSS
    elif weight.device.type != "meta" and not inside and not _projects(*first):
        refused["module"] = "it adds its input to the product or norms it, which would go with it; level='matrix' stays"
    decoder = bool(getattr(module, "is_decoder", False)) or getattr(module, "is_causal", False) is True
    cross = site.kind == "cross_attention"
    none_is_causal = not cross and bool(getattr(module, "is_causal", True))
    return dataclasses.replace(
        site,
        heads=shape[1],
        head_dim=shape[3],
        causal=False if cross else True if decoder else None,
        refused=refused,
        note=site.note or ("its residual and norm stay" if inside else ""),
        options={
            **site.options,
            "outputs": outputs,
            "none_is_causal": none_is_causal,
            "normed": inside,
            "positions": positions,
        },
    )


def _same(one: Tensor, other: Tensor) -> bool:
    close = one.abs().max().clamp(min=1e-6) * 1e-2
    return one.device.type == "meta" or bool((one - other).abs().max() <= close)


def _projects(one: Tensor, zero: Tensor, minus: Tensor) -> bool:
    """Whether outputs for a product, for zero and for minus the product are those of a projection with a bias."""
    size = one.abs().max().clamp(min=1e-6) * 1e-2
    same = (zero - zero[:1, :1]).abs().max() <= size
    odd = (one + minus - 2 * zero).abs().max() <= size
    return bool(same & odd)
