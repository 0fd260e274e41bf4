"""torch.nn.MultiheadAttention, alone and in the layers of torch.nn's Transformer, encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.adapters.base import Adapter, Attended, Call, Setting, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import CROSS, Kind, Place, Site
from matmix.adapters.softmax import heads_of
from matmix.adapters.torch_masks import Masks, future, masks_of, minus_infinity
from matmix.matrices.base import Matrix
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import merge_heads

SIZES = ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "batch_first")
PARTS = (
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "out_proj", "bias_k", "bias_v",
)  # fmt: skip


class _Inputs(NamedTuple):
    """The sequences of a call, batch first; one tensor where the caller gave one tensor."""

    query: Tensor  # (B, L, D)
    key: Tensor  # (B, S, kdim)
    value: Tensor  # (B, S, vdim)
    masks: Masks
    batched: bool
    weights: bool  # returned


@register_adapter
class TorchAttention(Adapter):
    """``attn(query, key, value, key_padding_mask=, need_weights=, attn_mask=, ..., is_causal=) -> (out, weights)``.

    A mixer has no weights to return: the second is None. With another matrix it is that matrix.

    ``nn.TransformerEncoderLayer`` has a fused way in eval mode that reads the weights of its attention and never calls
    it, and ``nn.TransformerEncoder`` may hand its layers nested tensors. So while something of ours stands in a layer,
    that layer goes its plain way, and its encoder makes no nested tensors: padded positions come out as numbers without
    meaning then, where nested tensors leave zeros.
    """

    name = "torch_attention"
    understood = frozenset({"query", "key", "value", "key_padding_mask", "attn_mask", "is_causal"})
    harmless = frozenset({"need_weights", "average_attn_weights"})

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        parameters = parameters_of(module)
        if parameters[:3] != ("query", "key", "value") or not set(parameters) <= self.understood | self.harmless:
            return None
        if not all(hasattr(module, name) for name in (*SIZES, *PARTS, "add_zero_attn", "dropout")):
            return None
        if not all(_of_a_part(name) for name in parts_of(module)):
            return None
        refused = {}
        if _kind(place) == "cross_attention":
            refused["module"] = CROSS
        options = {"add_bias_kv": module.bias_k is not None, "add_zero_attn": module.add_zero_attn}
        more = [name for name, given in options.items() if given]
        return self.known(
            place,
            _kind(place),
            module.embed_dim,
            heads=module.num_heads,
            head_dim=module.head_dim,
            refused=refused,
            note=f"{' and '.join(more)}: a key more each that is no token" if more else "",
            options={
                "batch_first": module.batch_first,
                "kdim": module.kdim,
                "vdim": module.vdim,
                **({"more_keys": " and ".join(more)} if more else {}),
            },
        )

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        inputs = self._inputs(site, args, kwargs)
        query, key, value, masks = inputs.query, inputs.key, inputs.value, inputs.masks
        unfit = masks.words
        if value is not key and (value.shape != key.shape or not _equal(value, key)):
            unfit = "the call brings values of other tokens than keys (keys with positions added?); a mixer has one x"
        shared: dict[str, Any] = {"causal": masks.causal, "unfit": unfit, "rest": inputs.batched}
        if key is query or (site.kind == "self_attention" and key.shape == query.shape and _equal(key, query)):
            return Call(query, mask=masks.keys, **shared)
        return Call(query, memory=key, memory_mask=masks.keys, **shared)

    def write(self, site: Site, call: Call, mixed: Tensor) -> Any:
        return _as_given(site, mixed, call.rest), None

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        inputs = self._inputs(site, args, kwargs)
        query, key, values = _projected(module, inputs)
        key, values, more = _with_more_keys(module, key, values)
        query, key, values = (heads_of(t, module.num_heads) for t in (query, key, values))
        average = _option(site, args, kwargs, "average_attn_weights")

        def finish(mixed: Tensor) -> Any:
            return _as_given(site, module.out_proj(merge_heads(mixed)), inputs.batched), None

        def weights(out: Any, ran: Matrix) -> Any:
            entries = ran.to_dense().expand(query.shape[0], query.shape[1], -1, -1)
            entries = entries.mean(1) if average else entries
            return out[0], entries if inputs.batched else entries.squeeze(0)

        matrix = _softmax(query, key, inputs.masks, more)
        return Attended(matrix, values, finish, module.dropout, weights=weights if inputs.weights else None)

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if site.kind == "self_attention":
            parts = (tokens if site.options["batch_first"] else tokens.transpose(0, 1),) * 3
        else:
            length = site.memory or tokens.shape[1]
            sizes = ((tokens.shape[1], site.dim), (length, site.options["kdim"]), (length, site.options["vdim"]))
            parts = tuple(_wound(tokens, *size) for size in sizes)  # type: ignore[assignment]
            if not site.options["batch_first"]:
                parts = tuple(t.transpose(0, 1) for t in parts)  # type: ignore[assignment]
        return parts, {"need_weights": False}

    def settings(self, site: Site, place: Place) -> Iterable[Setting]:
        """The layer's fused way off, in the words of the layer: an activation that the fused way does not know."""
        for name in site.names:
            for near, module in enumerate(Place(name, place.module, place.model).around()):
                if near == 0 and hasattr(module, "activation_relu_or_gelu"):
                    yield Setting(module, "activation_relu_or_gelu", 0)
                if hasattr(module, "use_nested_tensor"):
                    yield Setting(module, "use_nested_tensor", False)

    def kept(self, module: nn.Module) -> dict[str, Any]:
        """What layers and encoders read. Without an ``in_proj_bias`` an encoder layer goes its plain way."""
        return {"in_proj_bias": None, **{name: getattr(module, name) for name in SIZES if hasattr(module, name)}}

    def _inputs(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
        given = self.arguments(site, args, kwargs)
        missing = [name for name in ("query", "key", "value") if name not in given]
        if missing:
            raise TypeError(f"{site.name}: the call lacks {', '.join(missing)}")
        query, key, value = (given[name] for name in ("query", "key", "value"))
        if query.is_nested or key.is_nested:
            raise ValueError(f"{site.name}: got a NestedTensor; give padded tokens and key_padding_mask")
        dims, first = {query.dim(), key.dim(), value.dim()}, site.options["batch_first"]
        if dims not in ({2}, {3}):
            shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
            raise ValueError(f"{site.name}: query, key and value must be all 3-D or all 2-D (no batch), got {shapes}")
        batched = dims == {3}
        if not batched and "key_padding_mask" in given:
            given["key_padding_mask"] = given["key_padding_mask"].unsqueeze(0)

        def tokens(tensor: Tensor) -> Tensor:
            return (tensor if first else tensor.transpose(0, 1)) if batched else tensor.unsqueeze(0)

        # Which are one tensor is asked before they are laid out anew.
        told = tokens(query)
        seen = told if key is query else tokens(key)
        meant = seen if value is key else tokens(value)
        weights = _option(site, args, kwargs, "need_weights")
        batch, size = told.shape[0], (told.shape[1], seen.shape[1])
        masks = masks_of(site.name, given, weights=weights, heads=site.heads or 1, batch=batch, size=size)
        return _Inputs(told, seen, meant, masks, batched, weights)


def _of_a_part(name: str) -> bool:
    """Whether a part belongs to the attention: its own, or what makes one of these (parametrised, pruned, normed)."""
    return name == "parametrizations" or any(name == part or name.startswith(f"{part}_") for part in PARTS)


def _kind(place: Place) -> Kind:
    """Cross attention where keys have another width, or the module is a decoder layer's second one."""
    module: Any = place.module
    if {module.kdim, module.vdim} != {module.embed_dim}:
        return "cross_attention"
    owner = next(place.around(), None)
    second = getattr(owner, "multihead_attn", None) is module and hasattr(owner, "self_attn")
    return "cross_attention" if second else "self_attention"


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; of a compiled call that cannot be known."""
    return not torch.compiler.is_compiling() and torch.equal(one, other)


def _option(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bool:
    """One of the options that are True unless given."""
    return bool(site.named(args, kwargs).get(name, True))


def _as_given(site: Site, mixed: Tensor, batched: bool) -> Tensor:
    if not batched:
        return mixed.squeeze(0)
    return mixed if site.options["batch_first"] else mixed.transpose(0, 1)


def _projected(module: Any, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, L or S, D)``, in one product where they are of one sequence."""
    query, key, value = inputs.query, inputs.key, inputs.value
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if weight is not None and value is key is query:
        return F.linear(query, weight, bias).chunk(3, -1)  # type: ignore[return-value]
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = separate if weight is None else weight.chunk(3)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    return projected[0], projected[1], projected[2]


def _with_more_keys(module: Any, key: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and values with those that are no tokens behind them, and how many these are."""
    batch, more = key.shape[0], 0
    if module.bias_k is not None:
        key = torch.cat((key, module.bias_k.expand(batch, -1, -1)), 1)
        values = torch.cat((values, module.bias_v.expand(batch, -1, -1)), 1)
        more += 1
    if module.add_zero_attn:
        key, values = F.pad(key, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))
        more += 1
    return key, values, more


def _softmax(query: Tensor, key: Tensor, masks: Masks, more: int) -> Softmax:
    """The probabilities; the last ``more`` keys are no tokens, and no mask hides them."""
    keys, bias, causal = masks.keys, masks.bias, masks.causal
    rows, columns = query.shape[2], key.shape[2]
    if causal and (more or rows != columns):  # both counted from the first; a Softmax counts them from the last
        # With a believed hint it is torch's kernel that counts, and the keys that are no tokens come last.
        later = future((rows, columns if masks.hinted else columns - more), query.device)
        triangle = minus_infinity(later, query.dtype)[None, None]
        bias, causal = triangle if bias is None else bias + triangle, False
    if keys is not None and more:
        keys = F.pad(keys, (0, more), value=True)
    if bias is not None:
        bias = F.pad(bias, (0, columns - bias.shape[3])).expand(-1, -1, rows, -1)
    return Softmax(query, key, mask=keys, bias=bias, causal=causal)


def _wound(tokens: Tensor, length: int, width: int) -> Tensor:
    """Tokens ``(B, length, width)``, repeated or cut."""
    rows, columns = -(-length // tokens.shape[1]), -(-width // tokens.shape[2])
    return tokens.repeat(1, rows, columns)[:, :length, :width].contiguous()
