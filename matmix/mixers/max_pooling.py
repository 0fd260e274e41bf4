"""Max pooling: every token takes the largest of its neighbours, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.matrices.max_pool import MaxPool
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops.layout import image_of
from matmix.ops.maxima import largest_around


@register(
    "max_pooling",
    matrix="Selection per channel",
    cost="O(L D window)",
    source="sail-sg/iFormer",
    paper="2205.12956, equation 3",
)
class MaxPooling(Mixer):
    """``y[i, c] = max over the window about i of x[:, c]``, sequences and images; no parameters.

    The maximum is a product: in every channel, the matrix selects the token where it stands. This is the pooling in
    the high-frequency branch of the Inception mixer, without its linear map. Masked tokens are never selected.

    Args:
        window: tokens a side, odd.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(self, dim: int, grid: Grid | None = None, *, window: int = 3) -> None:
        super().__init__(dim, grid)
        if window % 2 == 0:
            raise ValueError(f"window must be a positive odd integer, got {window!r}")
        self.window = window

    def project(self, x: Tensor, context: Context) -> Projected:
        mask, grid = context.mask, context.grid
        matrix = MaxPool(x, grid, (self.window,) * len(grid), mask)
        return Projected(matrix, x.mT.unsqueeze(-1))

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, None]:
        mask, grid = context.mask, context.grid
        real = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        pooled = largest_around(image_of(real, grid), (self.window if len(grid) == 2 else 1, self.window))
        mixed = pooled.reshape(*pooled.shape[:2], x.shape[1], 1)
        if mask is not None:  # only padding sees nothing but padding
            mixed = mixed.masked_fill(~mask[:, None, :, None], 0)
        return mixed, None

    def merge(self, mixed: Tensor, rest: None) -> Tensor:
        return mixed.squeeze(-1).mT

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"
