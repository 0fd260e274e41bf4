"""Mixers whose state moves at the wrong time, and one whose state moves as it should."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from matmix.mixers import Context, Grid, Mixer, Projected
from tests.wrong.mixers import Decay


class Centred(Decay):
    """The correct twin: tokens are centred by a mean that moves after the step, by tokens whose gradient came back."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros(dim), persistent=False)

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().values(x - self.mean, mask)

    def project(self, x: Tensor, context: Context) -> Projected:
        return super().project(x, context)._replace(rest=x)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        if self.training:
            mixed = mixed * 1  # a tensor of its own to hang the hook on
            self.watch(mixed, rest)
        return super().merge(mixed, None)

    def watch(self, mixed: Tensor, x: Tensor) -> None:
        if mixed.requires_grad:
            mixed.register_hook(lambda _: self.note(x))

    @torch.no_grad()
    def note(self, x: Tensor) -> None:
        self.seen += x.sum((0, 1))

    def after_step(self) -> None:
        self.mean.lerp_(self.seen.tanh(), 0.5)
        self.seen.zero_()

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return super().advance(x - self.mean, state)


class MovesWhileLooking(Centred):
    """Moves its mean whenever it projects."""

    def project(self, x: Tensor, context: Context) -> Projected:
        if self.training:
            self.note(x)
            self.after_step()
        return super().project(x, context)


class MovesInForward(Centred):
    """Looks without moving, and moves in every forward, with or without gradients."""

    def watch(self, mixed: Tensor, x: Tensor) -> None:
        self.note(x)
        self.after_step()


class MovesBeforeTheStep(Centred):
    """Waits for gradients, not for the step."""

    def watch(self, mixed: Tensor, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.note(x)
            self.after_step()


class CountsTwice(Centred):
    """Notes tokens in forward: what is computed again counts again."""

    def watch(self, mixed: Tensor, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.note(x)


class KeepsTheLastPart(Centred):
    """Forgets the parts of a batch that came before."""

    @torch.no_grad()
    def note(self, x: Tensor) -> None:
        self.seen.copy_(x.sum((0, 1)))


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("looking", MovesWhileLooking, Centred, "mean after matrix(x): differs"),
    ("looking", MovesInForward, Centred, "mean after a forward without gradients: differs"),
    ("looking", MovesBeforeTheStep, Centred, "mean after forward and backward: differs"),
    ("recomputed", CountsTwice, Centred, "checkpoint(use_reentrant=False): mean after the step: off by"),
    ("recomputed", KeepsTheLastPart, Centred, "two parts of the batch: mean after the step: off by"),
]
