"""Mixers that are wrong about padding and prompts in one way each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from matmix.matrices import Dense
from matmix.mixers import Context, Grid, Mixer, Projected
from tests.wrong.mixers import Decay


class MultipliesPadding(Decay):
    """Padding times 0, which is NaN where it was NaN or infinite."""

    def forward(self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[misc]
        if mask is None:
            return super().forward(x, grid=grid)
        real = mask.to(x.dtype).unsqueeze(-1)
        return super().forward(x * real, grid=grid) * real


class DividesByNothing(Decay):
    """A row that sees no token is divided by a number that float16 does not hold."""

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        size = mixed.abs().amax(-1, keepdim=True)
        return super().merge(mixed * size.clamp(min=1e-6).reciprocal() * size, rest)


class ReturnsNothing(Decay):
    """Lets a sequence without tokens pass."""

    def forward(self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[misc]
        return x if x.shape[1] == 0 else super().forward(x, grid=grid, mask=mask)


class StartsAnew(Decay):
    """Takes a state and forgets it."""

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().absorb(x, mask, None)


class CutsItsState(Decay):
    """A state that no gradient reaches."""

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().absorb(x, mask, state if state is None else state.detach())


class PrefillsPadding(Decay):
    """A state that has seen the padding."""

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().absorb(x, mask, state)[0], super().absorb(x, None, state)[1]


class OverflowsInPrompts(Decay):
    """Numbers beyond float16's 65504 on the way."""

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = super().absorb(x, mask, state)
        return (out * 1e5) / 1e5, state


class Packs(Decay):
    """Correct: forgets where a sequence begins."""

    traits = replace(Decay.traits, packed=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super().project(x, context)
        if context.segments is None:
            return Projected(matrix, values, rest)
        own = context.segments.unsqueeze(-1) == context.segments.unsqueeze(-2)
        return Projected(Dense(matrix.to_dense() * own.unsqueeze(1)), values, rest)


class MixesThePack(Decay):
    """Takes segments and forgets them."""

    traits = replace(Decay.traits, packed=True)


class PacksWithoutSayingSo(Packs):
    """Takes segments and promises nothing."""

    traits = Decay.traits

    def forward(self, x: Tensor, *, segments: Tensor | None = None, **options: Any) -> Tensor:  # type: ignore[override, misc]
        return super().forward(x, **options)


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("padding_is_replaced", MultipliesPadding, Decay, "forward: 56 entries are not finite"),
    ("padding_in_half", DividesByNothing, Decay, "is not finite"),
    ("nothing_to_read", ReturnsNothing, Decay, "no ValueError that says"),
    ("prompts", StartsAnew, Decay, "then of the rest: off by"),
    ("prompts", CutsItsState, Decay, "prefill from a state: the gradient of the tokens before: off by"),
    ("padded_prompts", PrefillsPadding, Decay, "what follows on 1 tokens padded on the left, from the start: off by"),
    ("prompts_in_half", OverflowsInPrompts, Decay, "float16: prefill: an output is not finite"),
    ("packed", MixesThePack, Packs, "packed: forward: off by"),
    ("packed", PacksWithoutSayingSo, Decay, "no ValueError that says"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
