"""Channels: a sequence mixer on the transposed axes; the channels of a token are its sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from matmix.matrices.block_diagonal import BlockDiagonal
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import create_mixer, register


@register(
    "channels",
    matrix="BlockDiagonal over the tokens of the matrix of its mixer",
    cost="that of its mixer on D / width places, for every token",
    source="a mixer on the transposed axes",
    paper="2403.19888, section 3.2",
    smallest={"spec": "attention(head_dim=1)", "width": 2},
)
class Channels(Mixer):
    """``channels(spec="hydra", width=4)``: the channels of a token are a sequence of D / 4 places with 4 features each.

    No token reaches another one, so it works on any grid and at any resolution. The matrix has the tokens times their
    places as its axis, and a block for every token.

    Args:
        spec: a mixer that takes sequences.
        width: neighbouring channels that make one place; divides ``dim``.
    """

    # To a token, what stands before or after it, and what a mask hides, is all the same.
    traits = Traits(causal=True, data_dependent=True, mask="trim", recurrent=True, mixes=False, packed=True)

    def __init__(self, dim: int, grid: Grid | None = None, *, spec: str = "vim", width: int = 1) -> None:
        if dim % width:
            raise ValueError(f"width must be a divisor of dim={dim}, got {width!r}")
        mixer = create_mixer(spec, width, (dim // width,))
        if 1 not in mixer.traits.dims:
            raise ValueError(f"spec must be a mixer that takes sequences, got {spec!r}, which takes images only")
        self.traits = replace(type(self).traits, data_dependent=mixer.traits.data_dependent)
        super().__init__(dim, grid)
        self.width, self.mixer = width, mixer

    def project(self, x: Tensor, context: Context) -> Projected:
        batch, length, dim = x.shape
        places = x.reshape(batch * length, dim // self.width, self.width)
        matrix, values, rest = self.mixer.project(places, Context((places.shape[1],), None))
        blocks = values.unflatten(0, (batch, length)).transpose(1, 2).flatten(2, 3)
        return Projected(BlockDiagonal(matrix, length), blocks, (rest, (batch, length)))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        places = x.reshape(-1, self.dim // self.width, self.width)
        return self.mixer(places).reshape(x.shape)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        inner, (batch, length) = rest
        rows = mixed.unflatten(2, (length, mixed.shape[2] // length)).transpose(1, 2).flatten(0, 1)
        return self.mixer.merge(rows, inner).reshape(batch, length, self.dim)
