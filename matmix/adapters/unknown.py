"""What mixes tokens by all appearances and no adapter knows: a site that says so.

By appearances: layers of queries, keys and values, a recurrence (torch's, a state space), or a name that says tokens.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from matmix.adapters.base import Adapter, Call, parameters_of, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site

# Names of layers of queries, keys and values, without what libraries put before and behind them.
ROLES = {
    "q": "q", "k": "k", "v": "v", "query": "q", "key": "k", "value": "v", "qk": "qk", "kv": "kv", "qkv": "qkv",
    "query_key_value": "qkv", "receptance": "q",
}  # fmt: skip
TOKENS = re.compile(r"(mlp|linear)_tokens|token_mix\w*")
AROUND = re.compile(r"^(to_|w_?|lin(ear)?_)|(_?proj|_lin(ear)?|_layer|_conv)$")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


def roles(names: set[str]) -> str:
    """Which of queries, keys and values layers of these names make: ``{"q_proj", "to_kv"}`` makes "kqv"."""
    made = set()
    for name in names:
        plain = AROUND.sub("", name.lower())
        made |= set(ROLES.get(plain, ""))
    return "".join(sorted(made))


@register_adapter
class UnknownAttention(Adapter):
    """Asked last; a site that cannot be replaced, rather than one that is passed over in silence."""

    name = "unknown"
    probed = False
    last = True

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        own = parts_of(module)
        heads = next((found for name in HEADS if isinstance(found := getattr(module, name, None), int)), None)
        joint = "in_proj" in own and heads is not None
        attention = roles(own) == "kqv" or joint or isinstance(module, nn.MultiheadAttention)
        other = isinstance(module, nn.RNNBase) or own >= {"A_log", "D"} or TOKENS.fullmatch(place.name.split(".")[-1])
        if (not attention and not other) or type(module).forward is nn.Module.forward:  # a container
            return None
        entry = next(
            (getattr(module, name) for name in module._modules if "q" in roles({name}) or name == "in_proj"), module
        )
        widths = (getattr(entry, name, None) for name in ("in_features", "in_channels", "embed_dim", "input_size"))
        call = ", ".join(parameters_of(module))
        why = f"no adapter knows what it does with its call ({call}); register one (matmix.adapters)"
        return self.known(
            place,
            "self_attention" if attention and not own >= {"A_log", "D"} else "mixer",
            next((width for width in widths if isinstance(width, int)), 0),
            heads=heads,
            refused={"module": why, "matrix": why},
        )

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        raise NotImplementedError(site.refused["module"])
