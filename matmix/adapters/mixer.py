"""Our own mixers as sites: what takes the place of one is called as it was."""

from __future__ import annotations

import math
from typing import Any

from matmix.adapters.base import Adapter, Attended, Call
from matmix.adapters.registry import register_adapter
from matmix.adapters.replacement import attended_by
from matmix.adapters.site import Place, Site
from matmix.mixers.base import Mixer


@register_adapter
class MixerAdapter(Adapter):
    """``mixer(x, grid=, mask=, segments=)``."""

    name = "mixer"
    understood = frozenset({"x", "grid", "mask", "segments"})
    probed = False

    def site(self, place: Place) -> Site | None:
        module = place.module
        if not isinstance(module, Mixer):
            return None
        grid = module.grid
        length = None if grid is None else math.prod(grid)
        heads = getattr(module, "heads", None)
        return self.known(
            place,
            "mixer",
            module.dim,
            heads=heads if isinstance(heads, int) else None,
            causal=module.traits.causal,
            length=length,
            grid=grid,
            refused={"matrix": "a mixer of matmix goes as a whole: give the other spec at level='module'"},
        )

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = self.arguments(site, args, kwargs)
        return Call(given["x"], given.get("grid"), given.get("mask"), rest=given.get("segments"))

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        call = self.read(site, args, kwargs)
        return attended_by(module, call.tokens, grid=call.grid, mask=call.mask, segments=call.rest)
