"""timm's attention with a learned bias of positions: BEiT, ViTs with relative positions, windows (Swin, DaViT).

A mixer in their place gets no bias: it is of queries and keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from matmix.adapters.base import Attended, Call, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site
from matmix.adapters.softmax import softmax_of
from matmix.adapters.timm_attention import BIASES, PARTS, Tokens, finished, projected

TABLE = frozenset({"relative_position_bias_table", "relative_position_index"})


class Biased(Tokens):
    """What they have in common: a bias of the module's own, and what the call brings."""

    def bias(self, module: Any, given: dict[str, Any]) -> Tensor | None:
        """What is added to the scores, ``(H, N, N)`` or with a batch in front; None: nothing."""
        own = None if getattr(module, "relative_position_bias_table", None) is None else module._get_rel_pos_bias()
        shared = given.get("shared_rel_pos_bias")
        return own if shared is None else shared if own is None else own + shared

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        given = self.arguments(site, args, kwargs)
        query, key, values = projected(module, given["x"])
        matrix = softmax_of(query, key, factor=module.scale, bias=self.bias(module, given))
        dropout = getattr(getattr(module, "attn_drop", None), "p", 0.0)
        return Attended(matrix, values, finished(module, given["x"]), dropout, positional="mask" not in given)


@register_adapter
class BeitAttention(Biased):
    """``attn(x, shared_rel_pos_bias=None)``: a table of relative positions, a bias of queries and values alone."""

    name = "beit_attention"
    understood = frozenset({"x", "shared_rel_pos_bias"})
    parts = PARTS | BIASES | TABLE
    needed = frozenset({"qkv", "proj", "attn_drop", "proj_drop"})

    def site(self, place: Place) -> Site | None:
        return super().site(place) if "shared_rel_pos_bias" in parameters_of(place.module) else None

    def options(self, place: Place) -> dict[str, Any]:
        return {"fixed": getattr(place.module, "relative_position_bias_table", None) is not None}


@register_adapter
class RelPosAttention(Biased):
    """``attn(x, shared_rel_pos=None)``: ViTs whose relative positions are a part of their own, or shared by layers."""

    name = "rel_pos_attention"
    understood = frozenset({"x", "shared_rel_pos"})
    parts = PARTS | {"rel_pos"}
    needed = frozenset({"qkv", "proj", "attn_drop", "proj_drop"})

    def site(self, place: Place) -> Site | None:
        part, takes = getattr(place.module, "rel_pos", None), "shared_rel_pos" in parameters_of(place.module)
        return super().site(place) if takes and (part is None or hasattr(part, "get_bias")) else None

    def options(self, place: Place) -> dict[str, Any]:
        return {"fixed": getattr(place.module, "rel_pos", None) is not None}

    def bias(self, module: Any, given: dict[str, Any]) -> Tensor | None:
        return given.get("shared_rel_pos") if module.rel_pos is None else module.rel_pos.get_bias()


@register_adapter
class WindowAttention(Biased):
    """``attn(x (B windows, N, D), mask=None)``: the batch is of windows, the grid that of one; ``mask (windows, N, N)``
    keeps apart what a shift has brought into one window."""

    name = "window_attention"
    understood = frozenset({"x", "mask"})
    parts = PARTS | TABLE | {"softmax"}
    needed = frozenset({"qkv", "proj"})

    def site(self, place: Place) -> Site | None:
        sides = getattr(place.module, "window_size", None)
        if not isinstance(sides, tuple) or "qkv" not in parts_of(place.module):
            return None
        return super().site(place)

    def options(self, place: Place) -> dict[str, Any]:
        return {"fixed": True}

    def sequence(self, place: Place) -> tuple[int, tuple[int, ...] | None]:
        module: Any = place.module
        return 0, tuple(module.window_size)

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = self.arguments(site, args, kwargs)
        if "mask" not in given:
            return Call(given["x"], site.grid)
        words = f"mask {tuple(given['mask'].shape)} keeps pairs of tokens of shifted windows apart"
        return Call(given["x"], site.grid, unfit=f"{words}; a mixer takes a mask of tokens")

    def bias(self, module: Any, given: dict[str, Any]) -> Tensor | None:
        own, mask = super().bias(module, given), given.get("mask")
        if mask is None:
            return own
        apart = mask.repeat(given["x"].shape[0] // mask.shape[0], 1, 1).unsqueeze(1)
        return apart if own is None else own + apart
