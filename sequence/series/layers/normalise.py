"""Instance normalisation of a window: every series by its own mean and standard deviation, given back at the end."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Window(NamedTuple):
    """What a window was normalised by, (B, 1, C) each."""

    mean: Tensor
    std: Tensor


class InstanceNorm(nn.Module):
    """``(x - mean) / sqrt(variance + eps)`` over the steps of a window, and back: ``y * std + mean``.

    As published in Non-stationary Transformer and those that took it over: no gradient goes through the mean; through
    the standard deviation one does, but not where unknown values are left out.

    A series of which nothing is observed has mean 0 and the smallest deviation (the published code divides by 0).
    """

    learns_through_std: ClassVar[bool] = True

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Window]:
        """Windows (B, L, C), normalised, and by what.

        Args:
            x: values.
            observed: (B, L, C) or (B, L, 1) bool, True = a known value. The others have no part in mean and deviation,
                may be NaN, and come out as 0, which is the mean.
        """
        if observed is None:
            mean = x.mean(1, keepdim=True).detach()
            centred = x - mean
            std = (centred.var(1, keepdim=True, unbiased=False) + self.eps).sqrt()
            std = std if self.learns_through_std else std.detach()
        else:
            count = observed.sum(1, keepdim=True).clamp(min=1)
            mean = (x.masked_fill(~observed, 0).sum(1, keepdim=True) / count).detach()
            centred = (x - mean).masked_fill(~observed, 0)
            std = (centred.square().sum(1, keepdim=True) / count + self.eps).sqrt().detach()
        return centred / std, Window(mean, std)

    def undo(self, y: Tensor, window: Window) -> Tensor:
        """Values (B, any, C) of the normalised scale in that of the window."""
        return y * window.std + window.mean

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


def normalises(given: bool | None, goal: str) -> bool:
    """Whether windows are normalised where an option says so, does not (None), or does not need to: all but those of
    classifiers. A normalised series has lost its level and its size, which is what many classes differ in."""
    return goal != "classification" if given is None else given


def known(x: Tensor, observed: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Which values count: those observed, of real steps, (B, L, C) or (B, L, 1) bool; None: all."""
    real = None if mask is None else mask.unsqueeze(-1)
    if observed is None or real is None:
        return real if observed is None else observed
    return torch.logical_and(observed, real)


def normalised(norm: InstanceNorm | None, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Window | None]:
    """A window as a model reads it, and what it was normalised by; where values do not count (see `known`) it is 0.

    Args:
        norm: None where windows are read as they are.
        x: values (B, L, C).
        seen: what `known` gives.
    """
    window = None
    if norm is not None:
        x, window = norm(x, seen)
    return x if seen is None else x.masked_fill(~seen, 0), window


def restored(norm: InstanceNorm | None, steps: Tensor, window: Window | None) -> Tensor:
    """The output of a model on the scale of its window, the way back of `normalised`."""
    return steps if norm is None or window is None else norm.undo(steps, window)
