"""Maps of ours between tokens of two kinds: they are listed, show their matrix, and stay where they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from matmix.adapters.base import Adapter, Attended, Call
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import CROSS, Place, Site
from matmix.mixers.maps import TokenMap

WHY = "it is a map between tokens of two kinds, and a mixer gives as many tokens as it gets"


@register_adapter
class TokenMapAdapter(Adapter):
    """``map(tokens, ...)``: the first argument is what is read."""

    name = "token_map"
    probed = False

    def site(self, place: Place) -> Site | None:
        module = place.module
        if not isinstance(module, TokenMap):
            return None
        if module.kind != "cross_attention":
            return self.known(place, "map", module.dim, refused={"module": WHY, "matrix": WHY})
        heads: Any = module.heads
        width = module.dim // heads
        sizes = {"heads": heads, "head_dim": width, "causal": False}
        return self.known(place, "cross_attention", module.dim, refused={"module": CROSS}, **sizes)

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        tokens, *others = (*args, *kwargs.values())
        if tokens.dim() != 3:
            raise ValueError(f"{site.name}: expected tokens (B, L, D) as the first argument")
        if site.kind != "cross_attention":
            return Call(tokens)
        return Call(tokens, memory=others[0], memory_mask=others[1] if len(others) > 1 else None)

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        matrix, values, rest = module.project(*args, **kwargs)
        return Attended(matrix, values, lambda mixed: module.merge(mixed, rest), module.matrix_dropout)

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((tokens, tokens) if site.kind == "cross_attention" else (tokens,)), {}
