"""The state of a recurrent mixer in transformers' cache, so that ``generate`` goes on from it.

A layer of ours stands in the place of the one that would hold keys and values. It is one of the library's dynamic
layers, so that beams reorder it and lengths are asked of it; it holds the state and how many tokens it has seen.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.adapters.site import Site
from matmix.mixers.base import Mixer


def held(cache: Any, site: Site) -> Held:
    """What a cache keeps for a site; nothing is changed in it yet.

    Raises:
        ValueError: for a cache that cannot keep a state.
    """
    from transformers.cache_utils import DynamicLayer

    cache = getattr(cache, "self_attention_cache", cache)
    index, layers = site.options.get("layer"), getattr(cache, "layers", None)
    how = "generate with the library's own dynamic cache, or with generate(use_cache=False)"
    if layers is None or index is None:
        raise ValueError(f"{site.name}: a {type(cache).__name__} cannot keep the state of a mixer; {how}")
    layer = layers[index] if index < len(layers) else None
    if layer is not None and not isinstance(layer, DynamicLayer):
        raise ValueError(f"{site.name}: a {type(layer).__name__} of a cache cannot keep the state of a mixer; {how}")
    if layer is None and not issubclass(getattr(cache, "layer_class_to_replicate", None) or object, DynamicLayer):
        raise ValueError(f"{site.name}: a {type(cache).__name__} cannot keep the state of a mixer; {how}")
    if layer is not None and not isinstance(layer, state_layer()) and layer.get_seq_length():
        raise ValueError(f"{site.name}: the cache holds keys and values of before the replacement: begin anew")
    return Held(cache, index, site.name)


class Held:
    """The state of one site in a cache."""

    def __init__(self, cache: Any, index: int, where: str) -> None:
        self.cache, self.index, self.where = cache, index, where

    @property
    def _layer(self) -> Any:
        layers = self.cache.layers
        layer = layers[self.index] if self.index < len(layers) else None
        return layer if isinstance(layer, state_layer()) else None

    @property
    def seen(self) -> int:
        """Tokens before this call."""
        return 0 if self._layer is None else self._layer.length

    def mix(self, mixer: Mixer, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Mixed tokens, from the state before them; the state after them stays.

        A first call keeps none where the mixer has none, gradients are on, or padding came that it cannot trim: most
        models make a cache that nobody reads. To go on from it is refused then.
        """
        name, traits = type(mixer).__name__, mixer.traits
        why = None if traits.recurrent else f"{name} has none"
        if why is None and torch.is_grad_enabled():
            why = "the first call had gradients on"
        if why is None and mask is not None and traits.mask != "trim":
            why = f"the first call brought padding, which changes what real tokens of {name} see"
        if not self.seen and why is not None:
            out = mixer(tokens, mask=mask) if mask is not None else mixer(tokens)
            self.note(tokens.shape[1], why=why)
            return out
        layer = self._layer
        if layer is not None and layer.length and layer.state is None:
            raise ValueError(
                f"{self.where}: the call goes on from a cache that holds no state ({layer.why}): "
                f"generate(use_cache=False)"
            )
        state = None if layer is None else layer.state
        if tokens.shape[1] == 1 and state is not None and mask is None:
            single, after = mixer.step(tokens.squeeze(1), state)
            out = single.unsqueeze(1)
        else:
            out, after = mixer.prefill(tokens, mask=mask, state=state)
        self.note(tokens.shape[1], after)
        return out

    def note(self, tokens: int, state: Any = None, why: str = "the first call was recorded") -> None:
        """So many tokens more, and the state after them; None: it is not kept, and why."""
        layers = self.cache.layers
        while len(layers) <= self.index:
            layers.append(self.cache.layer_class_to_replicate())
        layer = self._layer
        if layer is None:
            layer = layers[self.index] = state_layer()(self.where)
        layer.length += tokens
        layer.state, layer.why = state, why


def twin_of(cache: Any, site: Site) -> Any:
    """A cache that can be written to once without a trace in the other."""
    if cache is None:
        return None
    twin = copy.copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(twin, name, twin_of(getattr(cache, name), site))
    if hasattr(cache, "is_updated"):
        twin.is_updated = dict(cache.is_updated)
    if isinstance(getattr(cache, "layers", None), list):
        # A dynamic layer makes new tensors; others write into theirs.
        from transformers.cache_utils import DynamicLayer

        own = site.options.get("layer")
        twin.layers = [
            layer if at != own else copy.copy(layer) if isinstance(layer, DynamicLayer) else copy.deepcopy(layer)
            for at, layer in enumerate(cache.layers)
        ]
    return twin


_made: Any = None


def state_layer() -> Any:
    """The class of the layers that hold a state; made once, by a replacement: a trace of it would be another class."""
    global _made
    if _made is None:
        _made = _make()
    return _made


def _make() -> Any:
    from transformers.cache_utils import DynamicLayer

    class StateLayer(DynamicLayer):
        """A layer of a cache that holds the state of a recurrent mixer."""

        is_croppable = is_compileable = False

        def __init__(self, where: str = "") -> None:
            super().__init__()
            self.where, self.length, self.state, self.why = where, 0, None, ""

        def get_seq_length(self) -> int:
            return self.length

        def get_mask_sizes(self, query: Any) -> tuple[int, int]:
            """Keys, and where they begin; of the number of queries, or of their positions before 5.6."""
            return self.length + (query.shape[0] if isinstance(query, Tensor) else query), 0

        def update(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(f"{self.where}: the cache holds the state of a mixer, and keys came: begin anew")

        def crop(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError(f"{self.where}: a state cannot go back to an earlier token: generate(use_cache=False)")

        def reset(self) -> None:
            self.length, self.state = 0, None

        def _each(self, change: Any) -> None:
            if self.state is not None:
                self.state = pytree.tree_map(lambda t: change(t) if isinstance(t, Tensor) else t, self.state)

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self._each(lambda t: t.index_select(0, beam_idx.to(t.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            self._each(lambda t: t.repeat_interleave(repeats, 0))

        def batch_select_indices(self, indices: Tensor) -> None:
            self._each(lambda t: t[indices.to(t.device)])

    return StateLayer
