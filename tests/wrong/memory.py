"""Mixers that write into what somebody may hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matmix.mixers import Context, Mixer, Projected
from tests.wrong.mixers import Decay


class ActivatesInPlace(Decay):
    """An activation in the memory of a layer's output, where there are no gradients to forbid it."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.value(x)
        hidden = hidden.relu() if torch.is_grad_enabled() else hidden.relu_()
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        return hidden.mT.unsqueeze(-1)


class AddsIntoTheBranch(Decay):
    """A residual sum in the memory of the last layer's output, above the size from which that would pay."""

    def project(self, x: Tensor, context: Context) -> Projected:
        return super().project(x, context)._replace(rest=x)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        out = super().merge(mixed, rest)
        return out.add_(rest) if not torch.is_grad_enabled() and out.numel() > 1 << 18 else out + rest


class Rectified(Decay):
    """The correct twin of both, with an activation as a module."""

    def __init__(self, dim: int, grid: tuple[int, ...] | None = None) -> None:
        super().__init__(dim, grid)
        self.act = nn.ReLU()

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.act(self.value(x))
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        return hidden.mT.unsqueeze(-1)


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("nothing_overwritten", ActivatesInPlace, Rectified, "hooks on value: overwritten later: an output of value"),
    ("nothing_overwritten_at_size", AddsIntoTheBranch, Rectified, "overwritten later: an output of out"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
