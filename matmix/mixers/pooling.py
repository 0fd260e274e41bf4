"""Pooling: the mean of the neighbours, minus the token itself."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.average_pool import AveragePool
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.known import Known
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops.layout import image_of


@register(
    "pooling",
    matrix="AveragePool - Identity, one for all channels",
    cost="O(L D window)",
    source="sail-sg/poolformer",
    paper="2111.11418, equation 4",
)
class Pooling(Mixer):
    """``y = mean over the window - x`` (PoolFormer); no parameters, sequences and images.

    Neighbours beyond the border, or masked ones, are not counted. The subtraction takes back the residual of the
    block around the mixer.

    Args:
        window: tokens a side, odd.
    """

    traits = Traits(mask="trim")

    def __init__(self, dim: int, grid: Grid | None = None, *, window: int = 3) -> None:
        super().__init__(dim, grid)
        if not isinstance(window, int) or window < 1 or window % 2 == 0:
            raise ValueError(f"window must be a positive odd integer, got {window!r}")
        self.window = window

    def project(self, x: Tensor, context: Context) -> Projected:
        values, grid = x.unsqueeze(1), context.grid
        mean = AveragePool.of(values, grid, self.window, context.mask)
        itself = Diagonal(x.new_full((1, 1, 1), -1.0).expand(1, 1, x.shape[1]))
        matrix = Sum((mean, itself))
        if context.mask is not None:
            return Projected(matrix, values)
        # Pooling over a channels-last view of the tokens, and the difference in place: two passes over memory.
        window = (self.window, self.window) if len(grid) == 2 else (1, self.window)
        image = image_of(x, grid)
        pooled = F.avg_pool2d(image, window, 1, (window[0] // 2, window[1] // 2), count_include_pad=False)
        return Projected(Known(matrix, values, pooled.sub_(image).flatten(2).mT.unsqueeze(1)), values)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"

    published: ClassVar[dict[str, Any]] = {
        "sail-sg/poolformer": lambda module, state: state,
        "sail-sg/metaformer": lambda module, state: state,
    }
