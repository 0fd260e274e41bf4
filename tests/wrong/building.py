"""Mixers that are wrong in how they are built or kept, and nothing else."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from matmix.mixers import Grid, Mixer
from tests.wrong.mixers import Decay


class Scaled(Decay):
    """The correct twin with a gain, which weight decay is to leave alone."""

    undecayed = frozenset({"gain"})

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.gain = nn.Parameter(torch.ones(dim))

    def scale(self) -> Tensor:
        return self.gain

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge(mixed * self.scale().view(-1, 1, 1), rest)

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decay.sigmoid() * state + self.value(x)
        return self.out(state * self.scale()), state


class KeepsATable(Scaled):
    """A table that no file holds, filled by the constructor."""

    table: Tensor

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.register_buffer("table", torch.linspace(1, 2, dim), persistent=False)

    def scale(self) -> Tensor:
        return self.gain * self.table


class StartsInNumpy(Scaled):
    """An array beside what stands on the default device."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.gain = nn.Parameter(torch.from_numpy(np.ones(dim, np.float32)) * torch.rand(dim))


class SaysFloat(Scaled):
    """One parameter is float32 whatever the default is."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.gain = nn.Parameter(torch.rand(dim, dtype=torch.float64).float())


class RoundsToTheDefault(Scaled):
    """A tensor of the default dtype and device in the midst of a forward."""

    def scale(self) -> Tensor:
        return self.gain * torch.linspace(1, 2, self.dim)


class ResizesByCounting(Scaled):
    """Sizes taken from numbers, which the meta device has not."""

    def resize_(self, grid: Grid) -> Self:
        torch.bincount(torch.arange(3, device=self.gain.device))
        return super().resize_(grid)


class MarksTheParameter(Scaled):
    """mamba-ssm's way."""

    undecayed = frozenset()

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.gain._no_weight_decay = True  # type: ignore[attr-defined]


class KeepsATranspose(Scaled):
    """A weight drawn as its transpose."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.value.weight = nn.Parameter(torch.randn(dim, dim).mT)


class CutsOneTensor(Scaled):
    """Two parameters in one piece of memory."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.gain, self.decay = (nn.Parameter(part) for part in torch.randn(2, dim))


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("built_on_meta", KeepsATable, Scaled, "loaded (assign=False): differs by nan"),
    ("built_on_meta", StartsInNumpy, Scaled, "not on the expected device"),
    ("default_device", RoundsToTheDefault, Scaled, "meta"),
    ("default_device", ResizesByCounting, Scaled, "aten::bincount"),
    ("default_dtype", SaysFloat, Scaled, "with float64 as default, gain is not float64"),
    ("default_dtype", RoundsToTheDefault, Scaled, "outputs with float32 and with float64 as default: differs by"),
    ("moved", MarksTheParameter, Scaled, "the parameter gain carries _no_weight_decay: its module should"),
    ("stored", KeepsATranspose, Scaled, "value.weight (8, 8) has strides (1, 8)"),
    ("stored", CutsOneTensor, Scaled, "shares memory with"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
