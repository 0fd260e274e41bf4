"""Local attention: softmax attention to the neighbours within a window."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.banded import Banded
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads
from matmix.mixers.registry import register
from matmix.ops.linear import linear
from matmix.ops.precision import full_precision, working_dtype


@register(
    "local_attention",
    matrix="Banded per head",
    cost="O(L D window^axes + L D^2)",
    source="Longformer's sliding window; on images, neighbourhood attention",
    paper="2004.05150, section 3.1; 2204.07143",
    smallest={"head_dim": 4, "window": 3},
)
class LocalAttention(Mixer):
    """``y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(E)) v_j`` over the tokens j in the window about i; linear in L.

    Windows are cut at the border of the grid and at masked tokens (neighbourhood attention shifts them instead).

    Args:
        window: tokens a side, odd: ``window // 2`` to either side.
        head_dim: width E of a head; there are ``dim // head_dim`` heads, at least one.
        causal: only the token and the ``window - 1`` before it (sequences; any window).
    """

    traits = Traits(data_dependent=True, mask="trim", packed=True)

    def __init__(
        self, dim: int, grid: Grid | None = None, *, window: int = 7, head_dim: int = 32, causal: bool = False
    ) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, aligned=True, dims=frozenset({1}))
        super().__init__(dim, grid)
        if window % 2 == 0 and not causal:
            raise ValueError(f"window must be a positive integer, odd unless causal, got {window!r}")
        self.window, self.causal = window, causal
        self.head_dim, self.heads = head_dim, max(1, dim // head_dim)
        inner = self.heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, dim, bias=False)

    def _reach(self, grid: Grid) -> list[tuple[int, ...]]:
        """Steps along the axes of the grid to every token of the window that the grid can hold."""
        ahead = 0 if self.causal else self.window // 2
        behind = self.window - 1 - ahead
        return list(product(*(range(-min(behind, n - 1), min(ahead, n - 1) + 1) for n in grid)))

    def project(self, x: Tensor, context: Context) -> Projected:
        grid = context.grid
        query, key, values = (
            linear(self.qkv, x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        steps = self._reach(grid)
        strides = (1,) if len(grid) == 1 else (grid[1], 1)
        offsets = tuple(sum(s * stride for s, stride in zip(step, strides, strict=True)) for step in steps)
        seen = self._seen(x, context, steps, offsets)
        length, margin = x.shape[1], max([abs(offset) for offset in offsets])
        padded = F.pad(key, (0, 0, margin, margin))
        exact = working_dtype(query)
        with full_precision(x.device):
            scores = torch.stack(
                [(query * padded[:, :, margin + o : margin + o + length]).sum(-1, dtype=exact) for o in offsets], -1
            )
            scores = scores * self.head_dim**-0.5
            # A masked token may see nobody: open its row and close it afterwards.
            empty = ~seen.any(-1, keepdim=True)
            bands = scores.masked_fill(~(seen | empty), -torch.inf).softmax(-1).masked_fill(~seen, 0)
        return Projected(Banded(bands.to(values.dtype), offsets), values)

    def _seen(self, x: Tensor, context: Context, steps: list[tuple[int, ...]], offsets: tuple[int, ...]) -> Tensor:
        """``(B or 1, 1, L, K)``: whether each token of the window lies on the grid and is real."""
        grid = context.grid
        inside = torch.ones((), dtype=torch.bool, device=x.device)
        for axis, n in enumerate(grid):
            place = torch.arange(n, device=x.device).unsqueeze(1) + torch.tensor(
                [step[axis] for step in steps], device=x.device
            )
            view = [1] * len(grid) + [len(steps)]
            view[axis] = n
            inside = inside & ((place >= 0) & (place < n)).view(view)
        inside = inside.reshape(1, 1, -1, len(steps))
        margin, length = max([abs(offset) for offset in offsets]), x.shape[1]

        def near(marks: Tensor) -> Tensor:  # (B, L) as (B, 1, L, K): those of the tokens of the window
            wide = F.pad(marks, (margin, margin))
            return torch.stack([wide[:, margin + o : margin + o + length] for o in offsets], -1).unsqueeze(1)

        if context.segments is not None:
            inside = inside & (near(context.segments) == context.segments[:, None, :, None])
        return inside if context.mask is None else inside & near(context.mask)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed))
