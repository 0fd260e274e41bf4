"""What has the parts of an attention and a call that no adapter knows: a site that says so."""

from __future__ import annotations

from typing import Any

from matmix.adapters.base import Adapter, Call, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site


@register_adapter
class UnknownAttention(Adapter):
    """Asked last; a site that cannot be replaced, rather than one that is passed over in silence."""

    name = "unknown"
    probed = False
    last = True

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        own = parts_of(module)
        fused = {"qkv"} <= own or {"q", "kv"} <= own or {"q", "k", "v"} <= own or {"q_proj", "k_proj", "v_proj"} <= own
        heads = getattr(module, "num_heads", None)
        entry = next((getattr(module, name) for name in ("qkv", "q", "q_proj") if name in own), None)
        dim = getattr(entry, "in_features", getattr(entry, "in_channels", None))
        if not fused or not isinstance(heads, int) or not isinstance(dim, int):
            return None
        call = ", ".join(parameters_of(module))
        why = f"no adapter knows what it does with its call ({call}); register one (matmix.adapters)"
        return Site(
            place.name,
            "self_attention",
            self.name,
            dim,
            type(module).__name__,
            heads=heads,
            parameters=parameters_of(module),
            refused={"module": why, "matrix": why},
        )

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        raise NotImplementedError(site.refused["module"])
