"""Mixers whose product, or the gradient of whose matrix, is not that of the matrix; and correct shorter ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from matmix.mixers import Context, Mixer, Projected
from tests.wrong.matrices import Filter
from tests.wrong.mixers import Decay


class Shorter(Decay):
    """A product beside the matrix, with dropout of the values in training; correct."""

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return nn.functional.dropout(self.values(x, mask), 0.5, self.training)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = self.dropped(x, context.mask)
        return Projected(Filter(self.kernel(x.shape[1]).to(values.dtype)), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        return self.summed(self.dropped(x, context.mask), self.decay), None

    def summed(self, values: Tensor, decay: Tensor) -> Tensor:
        """Token by token."""
        states = [torch.zeros_like(values[:, :, 0])]
        for value in values.unbind(2):
            states.append(decay.sigmoid().unsqueeze(-1) * states[-1] + value)
        return torch.stack(states[1:], 2)


class HoldsItsDecay(Shorter):
    """The right product, and no gradient for the decay."""

    def summed(self, values: Tensor, decay: Tensor) -> Tensor:
        return super().summed(values, decay.detach())


class DrawsTwice(Shorter):
    """Other random numbers than the matrix would have been made with."""

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        self.dropped(x, context.mask)
        return super().product(x, context)


class MultipliesUntold(Decay):
    """A matrix whose product has no gradient for its entries."""

    class Untold(Filter):
        def _matmul(self, values: Tensor) -> Tensor:
            return Filter(self.kernel.detach())._matmul(values)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = self.values(x, context.mask)
        return Projected(self.Untold(self.kernel(x.shape[1]).to(values.dtype)), values)


class ForgetsHowItCame(Decay):
    """The gradient of one of two factors of the entries."""

    def kernel(self, length: int) -> Tensor:
        kernel = super().kernel(length)
        return kernel + kernel.square() - kernel.square().detach()


class SaysStraightThrough(Decay):
    """The entries' own gradient, passed off as an estimator's."""

    traits = replace(Decay.traits, straight_through=True)


class StraightThrough(ForgetsHowItCame):
    """The same on purpose, and said."""

    traits = replace(Decay.traits, straight_through=True)


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("product_is_matrix", HoldsItsDecay, Shorter, "eval mode: the gradient of decay: off by"),
    ("product_is_matrix", DrawsTwice, Shorter, "training mode: the outputs: off by"),
    ("matmul_is_matrix", MultipliesUntold, Decay, "eval mode: the gradient of decay: off by"),
    ("matrix_gradient", ForgetsHowItCame, StraightThrough, "eval mode: the derivative of the entries is"),
    ("matrix_gradient", SaysStraightThrough, Decay, "straight_through is said of the entries' own gradient"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
