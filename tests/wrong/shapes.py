"""Mixers that run at one size only, once they are exported or compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.mixers import Context, Mixer, Projected
from tests.wrong.mixers import Decay


class SavesTimeOnSmallBatches(Decay):
    """A threshold of speed that an exporter keeps as a condition."""

    def project(self, x: Tensor, context: Context) -> Projected:
        if x.numel() < 5000:
            return super().project(x, context)
        return super().project(x.contiguous(), context)


class CollectsBatches(Decay):
    """A set of sizes, which a symbol cannot be in."""

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super().project(x, context)
        if len({x.shape[0], values.shape[0]}) != 1:
            raise ValueError("batches differ")
        return Projected(matrix, values, rest)


class GoesThroughChunks(Decay):
    """A loop whose number of rounds is the example's."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        values = super().values(x, mask)
        parts = [values[:, :, start : start + 4] for start in range(0, x.shape[1], 4)]
        return torch.cat(parts, 2)


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("exports", SavesTimeOnSmallBatches, Decay, "for batch <"),
    ("exports", CollectsBatches, Decay, "unhashable"),
    ("exports_any_length", GoesThroughChunks, Decay, "specialized it to be a constant"),
]
