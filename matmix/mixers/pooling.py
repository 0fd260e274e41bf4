"""Pooling: the mean of the neighbours, minus the token itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
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
        # Pooling over a channels-last view of the tokens.
        window = (self.window, self.window) if len(grid) == 2 else (1, self.window)
        graph = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        pooled = (_Pool.apply if graph else _pool)(image_of(x, grid), window)
        return Projected(Known(matrix, values, pooled.flatten(2).mT.unsqueeze(1)), values)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"

    published: ClassVar[dict[str, Any]] = {
        "sail-sg/poolformer": lambda module, state: state,
        "sail-sg/metaformer": lambda module, state: state,
    }


def _pool(image: Tensor, window: tuple[int, int]) -> Tensor:
    """The mean over the window less the image ``(B, D, rows, columns)`` itself, in two passes over memory."""
    pad = (window[0] // 2, window[1] // 2)
    return F.avg_pool2d(image, window, 1, pad, count_include_pad=False).sub_(image)


class _Pool(torch.autograd.Function):
    """``_pool``, with the difference in place in the gradient too; the engine would negate and add in two passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, window: tuple[int, int]) -> Tensor:
        return _pool(image, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, ctx.window = inputs
        ctx.save_for_backward(image)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (image,), window = ctx.saved_tensors, ctx.window
        pad = (window[0] // 2, window[1] // 2)
        spread = torch.ops.aten.avg_pool2d_backward(gradient, image, window, (1, 1), pad, False, False, None)
        return spread.sub_(gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _pool(tangent, ctx.window)
