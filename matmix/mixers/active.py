"""Active token mixer: every token picks, channel by channel, where in its row and its column it reads."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import ColumnCat
from matmix.matrices.identity import Identity
from matmix.matrices.interpolation import Interpolation
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.calls import check_axes
from matmix.mixers.registry import register
from matmix.ops.linear import linear
from matmix.ops.plain import is_plain
from matmix.ops.sizes import surely
from matmix.ops.state_space import inner_width


class _Rest(NamedTuple):
    shares: Tensor  # (B, branches, D), how much of every branch an output channel takes
    length: int


@register(
    "active",
    matrix="[Interpolation along the row; along the column; Identity] per group of channels",
    cost="O(L D^2)",
    source="microsoft/TokenMixers",
    paper="2203.06108, equation 4",
    smallest={"share": 2},
)
class Active(Mixer):
    """``y = W (a_w W_w S_w x + a_h W_h S_h x + a_c W_c x)``: ATM, the token mixer of ActiveMLP.

    S_w and S_h read each channel at a learned fractional distance along the row and along the column (linear between
    two tokens, zero beyond the grid); the distances come from the token itself. The shares ``a`` of the branches in
    each output channel are a softmax over the branches, from a small MLP on the branches' sum, averaged over tokens.
    The matrix stacks the branches, three rows a token (two on a sequence, which has no column branch), one head
    for each group of channels that share their distances.

    The published network makes the distances from the block's input before its norm, and every few blocks only; to
    share them between mixers, put a module into ``offset_layer`` that gives those of another: tokens ``(B, L, D)`` to
    ``(B, L, axes * D / share)``, along the last axis of the grid first.

    Args:
        share: neighbouring channels that read at the same distance; must divide ``dim``.
        mlp_ratio: hidden width of the shares' MLP over ``dim``.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(self, dim: int, grid: Grid | None = None, *, share: int = 1, mlp_ratio: float = 0.25) -> None:
        super().__init__(dim, grid)
        if dim % share:
            raise ValueError(f"share must be a positive divisor of dim={dim}, got {share!r}")
        hidden = inner_width(dim, mlp_ratio, "mlp_ratio")
        self.axes, self.share = 1 if self.grid is None else len(self.grid), share
        self.atm_c = nn.Linear(dim, dim, bias=False)
        self.atm_w = nn.Linear(dim, dim)
        self.atm_h = nn.Linear(dim, dim) if self.axes == 2 else None
        self.fusion = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, (self.axes + 1) * dim))
        )
        self.proj = nn.Linear(dim, dim)
        self.offset_layer: nn.Module = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, self.axes * dim // share))

    def _branches(self) -> list[nn.Linear]:
        return [branch for branch in (self.atm_w, self.atm_h, self.atm_c) if branch is not None]

    def project(self, x: Tensor, context: Context) -> Projected:
        values, blocks, streams = self._read(x, context)
        # Rows stacked: the transpose of columns side by side.
        matrix = ColumnCat(tuple(block.mT for block in (*blocks, Identity.like(values)))).mT
        return Projected(matrix, values, self._rest(streams, context))

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, _Rest]:
        # The shares are made from what the branches read: that is the product.
        values, _, streams = self._read(x, context)
        read = torch.cat(streams, 1).unflatten(2, (values.shape[1], self.share))
        return read.transpose(1, 2), self._rest(streams, context)

    def _read(self, x: Tensor, context: Context) -> tuple[Tensor, list[Interpolation], list[Tensor]]:
        """Values, the matrix along every axis, and the tokens ``(B, L, D)`` that every branch reads."""
        grid = context.grid
        check_axes(self, grid)
        batch, length, dim = x.shape
        groups = dim // self.share
        offsets = self.offset_layer(x).mT.view(batch, self.axes, groups, length).unbind(1)
        values = x.view(batch, length, groups, self.share).transpose(1, 2)
        blocks = [Interpolation(offset, grid, self.axes - 1 - number) for number, offset in enumerate(offsets)]
        return values, blocks, [merge_heads(block.matmul(values)) for block in blocks] + [x]

    def _rest(self, streams: list[Tensor], context: Context) -> _Rest:
        """The shares of the branches, from the mean of their sum. The mean of an affine map is the map of the mean."""
        mask, length = context.mask, streams[0].shape[1]
        count = length if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        total = streams[0].new_zeros(())
        for branch, stream in zip(self._branches(), streams, strict=True):
            total = total + branch(drop_padding(stream, mask).sum(1) / count)
        shares = self.fusion(total).unflatten(-1, (self.dim, len(streams))).softmax(-1).mT
        return _Rest(shares, length)

    def merge(self, mixed: Tensor, rest: _Rest) -> Tensor:
        read = merge_heads(mixed)
        shares = rest.shares.unsqueeze(2).unbind(1)  # (B, 1, D) each
        streams = read.unflatten(1, (len(shares), rest.length)).unbind(1)
        parts = list(zip(self._branches(), shares, streams, strict=True))
        plain = [branch for branch in self._branches() if is_plain(branch, nn.Linear)]
        if surely(rest.length < self.dim) or len(plain) < len(parts):
            out = torch.zeros((), dtype=read.dtype, device=read.device)
            for branch, share, stream in parts:
                out = torch.addcmul(out, share, branch(stream))
            return linear(self.proj, out)
        # The shares go into the weights, (B, D, D): one pass over the outputs instead of three.
        out = torch.stack(
            [share * b.bias for b, (_, share, _) in zip(plain, parts, strict=True) if b.bias is not None]
        ).sum(0)
        for branch, (_, share, stream) in zip(plain, parts, strict=True):
            out = torch.baddbmm(out, stream, (share.mT * branch.weight).mT)
        return linear(self.proj, out)

    def resize_(self, grid: Grid) -> Self:
        check_axes(self, grid)
        return super().resize_(grid)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, share={self.share}"

    # The published branches are 1 x 1 deformable convolutions.
    published: ClassVar[dict[str, Any]] = {
        "microsoft/TokenMixers": lambda module, state: {
            name: value.flatten(1) if name in ("atm_h.weight", "atm_w.weight") else value
            for name, value in state.items()
        }
    }
