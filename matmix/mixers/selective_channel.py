"""MambaMixer's selective channel mixer: a bidirectional selective scan along the channels of every token."""

from __future__ import annotations

from matmix.mixers.base import Grid
from matmix.mixers.channels import Channels
from matmix.mixers.registry import register


@register(
    "selective_channel",
    matrix="BlockDiagonal over the tokens of Vim's matrix along the channels",
    cost="O(L D N expand), element by element",
    source="the paper (no official code)",
    paper="2403.19888, section 3.2",
    smallest={"d_state": 2, "expand": 2, "d_conv": 3, "width": 2},
)
class SelectiveChannel(Channels):
    """MambaMixer's channel mixer: the block of its token mixer on the transposed axes, in both directions.

    No code was published, and the paper does not say what the features of a channel are. This is a reading:

    - "flattens each token ... across channels" (ViM2) is taken word by word: each token by itself is a sequence of D
      channels. Linear maps of the transposed input over the tokens, the other reading, tie the weights to one
      resolution and alone outweigh the published models.
    - A channel is a single number (or ``width`` neighbours are one place), which ``in_proj`` lifts to ``expand *
      width`` features: the x and the gate of the block.
    - The two directions have convolutions, selections and rates of their own and share projections and gate, and are
      added, not averaged: figure 1. That is ``vim(divide=False)`` along the channels.

    No residual and no norm is part of it; the model around it adds them.

    Args:
        width: channels that make one place.
        expand: features of a place over ``width``.
        d_state: state size N.
        d_conv: taps of the convolutions along the channels.
        chunk: places of a chunk of the scans; None chooses. No result depends on it.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        width: int = 1,
        expand: float = 2,
        d_state: int = 16,
        d_conv: int = 4,
        chunk: int | None = None,
    ) -> None:
        options = f"expand={expand}, d_state={d_state}, d_conv={d_conv}, chunk={chunk}"
        super().__init__(dim, grid, spec=f"vim({options}, divide=False)", width=width)
