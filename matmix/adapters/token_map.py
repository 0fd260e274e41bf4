"""Maps of ours between tokens of two kinds: they are listed and show their matrix, and stay where they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from matmix.adapters.base import Adapter, Attended, Call
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site
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
        return self.known(place, "map", module.dim, refused={"module": WHY, "matrix": WHY})

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        tokens = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        if tokens is None or tokens.dim() != 3:
            raise ValueError(f"{site.name}: expected tokens (B, L, D) as the first argument")
        return Call(tokens)

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        matrix, values, rest = module.project(*args, **kwargs)
        return Attended(matrix, values, lambda mixed: module.merge(mixed, rest))
