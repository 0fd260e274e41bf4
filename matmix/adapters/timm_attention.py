"""timm's attention over tokens: ViT, DeiT, with registers, of a MetaFormer, and EVA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matmix.adapters.base import Adapter, Attended, Call, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site
from matmix.adapters.softmax import heads_of, keys_of, softmax_of
from matmix.mixers.base import merge_heads

PARTS = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})
BIASES = frozenset({"q_bias", "k_bias", "v_bias"})


class Tokens(Adapter):
    """``attn(x (B, N, D), ...) -> (B, N, D)``, prefix tokens first."""

    parts: frozenset[str] = frozenset()  # what such a module may have of its own
    needed: frozenset[str] = frozenset({"proj"})

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        parameters = parameters_of(module)
        own = parts_of(module)
        if not (self.needed <= own <= self.parts and parameters[:1] == ("x",)):
            return None
        if not set(parameters) <= self.understood:
            return None
        entry = module.qkv if "qkv" in own else module.q_proj
        heads, dim = getattr(module, "num_heads", None), getattr(entry, "in_features", None)
        inner = getattr(module.proj, "in_features", None)
        if not isinstance(heads, int) or dim is None or inner is None or inner % heads:
            return None
        refused = {}
        out = getattr(module.proj, "out_features", dim)
        if out != dim:
            refused["module"] = f"its outputs are {out} wide, its inputs {dim}: a mixer keeps the width"
        prefix, grid = self.sequence(place)
        return self.known(
            place,
            "self_attention",
            dim,
            heads=heads,
            head_dim=inner // heads,
            causal=None if {"attn_mask", "is_causal"} & set(parameters) else False,
            length=None if grid is None else math.prod(grid) + prefix,
            grid=grid,
            prefix=prefix,
            refused=refused,
            options=self.options(place),
        )

    def options(self, place: Place) -> dict[str, Any]:
        """What else a call is to be read by."""
        return {}

    def sequence(self, place: Place) -> tuple[int, tuple[int, ...] | None]:
        """Prefix tokens and the grid behind them, as the model around states them."""
        prefix = place.nearest("num_prefix_tokens", 0)
        embed = place.nearest("patch_embed")
        grid = getattr(embed, "grid_size", None)
        # A model that drops patches or takes images of any size has no one length.
        if getattr(embed, "strict_img_size", True) is False or bool(
            getattr(place.nearest("patch_drop"), "prob", False)
        ):
            grid = None
        return prefix if isinstance(prefix, int) else 0, tuple(grid) if grid is not None else None

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = self.arguments(site, args, kwargs)
        x, mask, causal = given["x"], given.get("attn_mask"), bool(given.get("is_causal", False))
        if mask is None:
            return Call(x, causal=causal)
        padding = keys_of(mask)
        if padding is None:
            words = f"attn_mask {tuple(mask.shape)} hides pairs of tokens; a mixer takes a mask of tokens, "
            return Call(x, causal=causal, unfit=f"{words}bool (B, 1, 1, N), True = a real one")
        return Call(x, mask=padding.expand(x.shape[0], -1), causal=causal)


def projected(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, H, N, E)``, from one layer or three, normed where the module does."""
    heads = module.num_heads
    if getattr(module, "qkv", None) is None:
        query, key, values = (heads_of(getattr(module, f"{letter}_proj")(x), heads) for letter in "qkv")
    else:
        joint = module.qkv(x)
        if getattr(module, "q_bias", None) is not None:
            joint = joint + torch.cat((module.q_bias, module.k_bias, module.v_bias))
        query, key, values = joint.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    norms = (getattr(module, name, None) for name in ("q_norm", "k_norm"))
    query, key = (t if norm is None else norm(t) for norm, t in zip(norms, (query, key), strict=True))
    return query, key, values


def finished(module: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """From the product to the module's output: norm, gate, output projection, dropout, where it has them."""
    gate = getattr(module, "gate", None)
    share = None if gate is None else gate(x).sigmoid()

    def finish(mixed: Tensor) -> Tensor:
        out = merge_heads(mixed)
        if getattr(module, "norm", None) is not None:
            out = module.norm(out)
        if share is not None:
            out = out * share
        out = module.proj(out)
        return module.proj_drop(out) if hasattr(module, "proj_drop") else out

    return finish


@register_adapter
class TimmAttention(Tokens):
    """``attn(x)`` of timm 1.0.15, ``attn(x, attn_mask=None, is_causal=False)`` from 1.0.27 on; of a MetaFormer too."""

    name = "timm_attention"
    understood = frozenset({"x", "attn_mask", "is_causal"})
    parts = PARTS
    needed = frozenset({"qkv", "proj", "attn_drop", "proj_drop"})

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        given = self.arguments(site, args, kwargs)
        x, causal = given["x"], bool(given.get("is_causal", False))
        query, key, values = projected(module, x)
        mask = None if causal else given.get("attn_mask")  # timm: with both the causal one wins
        matrix = softmax_of(query, key, factor=module.scale, attn_mask=mask, causal=causal)
        return Attended(matrix, values, finished(module, x), module.attn_drop.p)


@register_adapter
class EvaAttention(Tokens):
    """``attn(x, rope=None, attn_mask=None, is_causal=False)``: rotations of all tokens but the prefix.

    A mixer in its place gets no rotations: they are of queries and keys.
    """

    name = "eva_attention"
    understood = frozenset({"x", "rope", "attn_mask", "is_causal"})
    parts = PARTS | BIASES | {"q_proj", "k_proj", "v_proj"}
    needed = frozenset({"proj", "attn_drop", "proj_drop"})

    def site(self, place: Place) -> Site | None:
        own = parts_of(place.module)
        ways = "qkv" in own or {"q_proj", "k_proj", "v_proj"} <= own
        return super().site(place) if ways and "rope" in parameters_of(place.module) else None

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        given = self.arguments(site, args, kwargs)
        query, key, values = projected(module, given["x"])
        if "rope" in given:
            prefix, half = module.num_prefix_tokens, getattr(module, "rotate_half", False)
            query, key = (_rotated(t, given["rope"], prefix, half) for t in (query, key))
        causal = bool(given.get("is_causal", False))
        mask = None if causal else given.get("attn_mask")
        matrix = softmax_of(query, key, factor=module.scale, attn_mask=mask, causal=causal)
        return Attended(matrix, values, finished(module, given["x"]), module.attn_drop.p)


def _rotated(tokens: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """Queries or keys ``(B, H, N, E)`` turned by sines and cosines ``(N - prefix, 2 E)``, the prefix left alone."""
    head, x = tokens.split((prefix, tokens.shape[2] - prefix), 2)
    sine, cosine = rope.chunk(2, -1)
    if half:
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return torch.cat((head, (x * cosine + turned * sine).to(tokens.dtype)), 2)
