"""Mixers that are wrong about padding and prompts in one way each."""

from __future__ import annotations

from torch import Tensor

from matmix.mixers import Grid, Mixer
from tests.wrong.mixers import Decay


class MultipliesPadding(Decay):
    """Padding times 0, which is NaN where it was NaN or infinite."""

    def forward(self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[misc]
        if mask is None:
            return super().forward(x, grid=grid)
        real = mask.to(x.dtype).unsqueeze(-1)
        return super().forward(x * real, grid=grid) * real


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("padding_is_replaced", MultipliesPadding, Decay, "forward: 56 entries are not finite"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
