"""Replacement: a mixer in the place of a foreign module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters.base import Adapter, Attended, Call
from matmix.adapters.site import Site
from matmix.mixers.base import Mixer, drop_padding


class Replacement(nn.Module):
    """A mixer that is called as the module before it was, and answers as that one did."""

    def __init__(self, site: Site, adapter: Adapter, mixer: Mixer, **kept: Any) -> None:
        super().__init__()
        self.site, self.adapter = site, adapter
        for name, value in kept.items():
            setattr(self, name, value)
        self.mixer = mixer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.adapter.read(self.site, args, kwargs)
        return self.adapter.answer(self, call, self.mix(call))

    def mix(self, call: Call) -> Tensor:
        """Mixed tokens ``(B, L, D)``; of prefix tokens that stand aside the mixing term is zero.

        Raises:
            ValueError: for a call that demands what the mixer does not promise, with the site's name.
        """
        tokens, given = self._given(call)
        if call.held is not None:
            return self._beside(call, call.held.mix(self.mixer, tokens, given.get("mask")))
        return self._beside(call, self.mixer(tokens, **given))

    def attended(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        """The matrix of a call, its values, and what becomes of the product; without prefix tokens that stand aside."""
        call = self.adapter.read(self.site, args, kwargs)
        tokens, given = self._given(call)
        if call.held is not None and call.held.seen:
            raise ValueError(f"{self.site.name}: the call goes on from a state, its tokens alone have no matrix")
        found = attended_by(self.mixer, tokens, **given)

        def finish(mixed: Tensor) -> Any:
            if call.held is not None:
                call.held.note(tokens.shape[1])
            return self.adapter.answer(self, call, self._beside(call, found.finish(mixed)))

        return found._replace(finish=finish)

    def _given(self, call: Call) -> tuple[Tensor, dict[str, Any]]:
        """What the mixer gets."""
        site, traits, name = self.site, self.mixer.traits, type(self.mixer).__name__
        if call.unfit is not None:
            raise ValueError(f"{site.name}: {call.unfit}")
        if call.memory is not None:
            raise ValueError(f"{site.name}: the call brings another sequence to attend to, a mixer mixes one")
        if call.causal and not traits.causal:
            raise ValueError(f"{site.name}: the call demands causality, {name} is not causal")
        if call.mask is not None and traits.mask is None:
            raise ValueError(f"{site.name}: the call brings a padding mask, {name} takes none")
        aside = self._aside
        given: dict[str, Any] = {}
        if call.grid is not None and site.prefix == aside and len(call.grid) in traits.dims:
            given["grid"] = call.grid
        if call.mask is not None:
            given["mask"] = call.mask[:, aside:] if aside else call.mask
        return (call.tokens[:, aside:] if aside else call.tokens), given

    @property
    def _aside(self) -> int:
        return self.site.prefix if self.site.prefix_as == "aside" else 0

    def _beside(self, call: Call, mixed: Tensor) -> Tensor:
        if not self._aside:
            return mixed
        return torch.cat((mixed.new_zeros(mixed.shape[0], self._aside, mixed.shape[2]), mixed), 1)

    def extra_repr(self) -> str:
        return f"called as {self.site.adapter} at {self.site.name}"


def attended_by(
    mixer: Mixer, x: Tensor, *, grid: Any = None, mask: Tensor | None = None, segments: Tensor | None = None
) -> Attended:
    """The matrix and the values of a mixer of ours, and what its forward makes of the product."""
    context = mixer._context(x, grid, mask, segments)
    matrix, values, rest = mixer.project(drop_padding(x, mask), context)
    return Attended(matrix, values, lambda mixed: drop_padding(mixer.merge(mixed, rest), mask).to(x.dtype))
