"""Heads: several mixers side by side, each on its share of the channels."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, HeadCat
from matmix.matrices.base import Matrix
from matmix.matrices.low_rank import LowRank
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, merge_heads, split_heads
from matmix.mixers.registry import create_mixer, register


@register(
    "heads",
    matrix="HeadCat of those of its parts",
    cost="the sum of its parts on their shares",
    source="hybrid heads, as in Hymba",
    paper="2411.13676, section 2.1",
    smallest={"args": ("attention(head_dim=2)", "sep_conv(kernel=3)")},
)
class Heads(Mixer):
    """``heads("attention", "ssd")``: every part mixes its own contiguous share of the channels.

    The matrix has the heads of all parts in turn. Parts of different head widths meet at their greatest common
    divisor, and a part that reads fewer value streams than another gets zero columns. What all parts promise, the
    whole promises.

    Args:
        specs: one mixer spec a part.
        dims: the channels of every part, adding up to ``dim``; equal shares where absent.
    """

    traits = Traits(data_dependent=True, mask="trim")  # of attention beside sep_conv; see joint_traits

    def __init__(self, dim: int, grid: Grid | None = None, *specs: str, dims: tuple[int, ...] | None = None) -> None:
        if not specs:
            raise ValueError('heads needs the specs of its parts, as in heads("attention", "sep_conv"), got none')
        shares = (dim // len(specs),) * len(specs) if dims is None else tuple(dims)
        if len(shares) != len(specs) or sum(shares) != dim or min(shares) < 1:
            raise ValueError(
                f"heads: dims must be {len(specs)} positive widths that add up to dim={dim}, got "
                f"{dims if dims is not None else 'equal shares, which do not exist'}"
            )
        parts = [create_mixer(spec, share, grid) for spec, share in zip(specs, shares, strict=True)]
        self.traits = joint_traits([part.traits for part in parts])
        if not self.traits.dims:
            raise ValueError(f"heads: no grid suits all of {', '.join(specs)}")
        super().__init__(dim, grid)
        self.shares = shares
        self.parts = nn.ModuleList(parts)

    def _shares(self, x: Tensor) -> zip[tuple[Mixer, Tensor]]:
        return zip(self.parts, x.split(self.shares, -1), strict=True)  # type: ignore[arg-type]

    def project(self, x: Tensor, context: Context) -> Projected:
        projected = [part.project(share, context) for part, share in self._shares(x)]
        width = math.gcd(*(values.shape[3] for _, values, _ in projected))
        columns = max(values.shape[2] for _, values, _ in projected)
        matrices, streams, repeats, sizes, rests = [], [], [], [], []
        for matrix, values, rest in projected:
            _, heads, length, wide = values.shape
            repeats.append(heads * (wide // width) // matrix.shape[1])
            sizes.append((heads, wide))
            rests.append(rest)
            matrices.append(_widen(matrix, columns, values))
            # Side by side as channels of tokens, which for most parts is how they lie in memory.
            streams.append(merge_heads(values if length == columns else F.pad(values, (0, 0, 0, columns - length))))
        joint = torch.cat(streams, 2)
        values = split_heads(joint, joint.shape[2] // width)
        return Projected(HeadCat(tuple(matrices), tuple(repeats)), values, (sizes, rests))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        shares = self._shares(x)
        given = {"grid": context.grid, "mask": context.mask}
        if context.segments is not None:
            given["segments"] = context.segments
        return torch.cat([part(share, **given) for part, share in shares], -1)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        sizes, rests = rest
        chunks = merge_heads(mixed).split([heads * wide for heads, wide in sizes], 2)
        outputs = []
        for part, chunk, (heads, wide), inner in zip(self.parts, chunks, sizes, rests, strict=True):
            values = chunk.unflatten(2, (heads, wide)).transpose(1, 2)
            outputs.append(part.merge(values, inner))  # type: ignore[operator]
        return torch.cat(outputs, -1)

    def resize_(self, grid: Grid) -> Self:
        super().resize_(grid)
        for part in self.parts:
            part.resize_(grid)  # type: ignore[operator]
        return self

    # ------------------------------------------------------------------ token by token: the states of the parts

    def init_state(self, batch: int) -> State:
        return tuple(part.init_state(batch) for part in self.parts)  # type: ignore[operator]

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        state = [None] * len(self.parts) if state is None else state
        results = [part.absorb(share, mask, own) for (part, share), own in zip(self._shares(x), state, strict=True)]
        outputs, states = zip(*results, strict=True)
        return torch.cat(outputs, -1), states

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        results = [part.advance(share, own) for (part, share), own in zip(self._shares(x), state, strict=True)]
        outputs, states = zip(*results, strict=True)
        return torch.cat(outputs, -1), states


def _widen(matrix: Matrix, columns: int, values: Tensor) -> Matrix:
    """The matrix with zero columns (a low-rank matrix of rank 0) up to ``columns``."""
    _, _, rows, own = matrix.shape
    if own == columns:
        return matrix
    return ColumnCat((matrix, LowRank(values.new_zeros(1, 1, rows, 0), values.new_zeros(1, 1, columns - own, 0))))


def joint_traits(parts: list[Traits]) -> Traits:
    """What all of several mixers promise together."""
    order: tuple[Literal[None, "content", "trim"], ...] = (None, "content", "trim")
    fixed = any(part.length == "fixed" for part in parts)
    return Traits(
        causal=all(part.causal for part in parts),
        data_dependent=any(part.data_dependent for part in parts),
        length="fixed" if fixed else "any",
        mask=order[min(order.index(part.mask) for part in parts)],
        recurrent=all(part.recurrent for part in parts),
        aligned=all(part.aligned for part in parts),
        mixes=any(part.mixes for part in parts),
        packed=all(part.packed for part in parts),
        dims=frozenset.intersection(*(part.dims for part in parts)),
    )
