"""Pooling: the mean of the neighbours, minus the token itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.average_pool import AveragePool
from matmix.matrices.diagonal import Diagonal
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops.activations import untransformed
from matmix.ops.layout import image_of
from matmix.ops.linear import runs_only


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
        if window % 2 == 0:
            raise ValueError(f"window must be a positive odd integer, got {window!r}")
        self.window = window

    def project(self, x: Tensor, context: Context) -> Projected:
        values = x.unsqueeze(1)
        mean = AveragePool.of(values, context.grid, self.window, context.mask)
        return Projected(Sum((mean, Diagonal(x.new_full((1, 1, 1), -1.0).expand(1, 1, x.shape[1])))), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        # A transform would take the gradient of PyTorch's kernel, wrong on CUDA (see _shares): the matrix runs instead.
        if context.mask is not None or (not untransformed() and x.is_cuda):
            return super().product(x, context)
        # Pooling over a channels-last view of the tokens.
        window = (self.window, self.window) if len(context.grid) == 2 else (1, self.window)
        image = image_of(x, context.grid)
        graph = x.requires_grad and torch.is_grad_enabled() and untransformed()
        pooled = (_Pool.apply if graph else _pool)(image, window)
        return pooled.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"

    published: ClassVar[dict[str, Any]] = {
        "sail-sg/poolformer": lambda module, state: state,
        "sail-sg/metaformer": lambda module, state: state,
    }


# Numbers in a batch of images from which a depthwise convolution is the faster average on the CPU: twice as fast with
# eight images of 56 x 56 x 64, even at 14 x 14 x 320.
WORTH = 1 << 19


def _pool(image: Tensor, window: tuple[int, int]) -> Tensor:
    """The mean over the window less the image ``(B, D, rows, columns)`` itself."""
    if _convolves(image, window):
        mixed = _mean(image, window, itself=-1.0)
        for lines, more in _border(image, window):  # more (mixed + image) - image
            mixed[lines].mul_(more).add_(image[lines], alpha=more - 1)
        return mixed
    pad = (window[0] // 2, window[1] // 2)
    return F.avg_pool2d(image, window, 1, pad, count_include_pad=False).sub_(image)


def _spread(gradient: Tensor, image: Tensor, window: tuple[int, int]) -> Tensor:
    """The transposed map: every mean's gradient to the window that it was taken over, less the gradient itself."""
    if _convolves(gradient, window):
        shares = gradient.clone()
        for lines, more in _border(image, window):
            shares[lines].mul_(more)
        return _mean(shares, window).sub_(gradient)
    pad = (window[0] // 2, window[1] // 2)
    if gradient.is_cuda:
        given = gradient * _shares(gradient, window)
        return F.avg_pool2d(given, window, 1, pad, divisor_override=1).to(gradient.dtype).sub_(gradient)
    return torch.ops.aten.avg_pool2d_backward(gradient, image, window, (1, 1), pad, False, False, None).sub_(gradient)


def _shares(image: Tensor, window: tuple[int, int]) -> Tensor:
    """One over the tokens inside each window, ``(1, 1, rows, columns)``.

    On CUDA windows are summed, and this divides: the kernel that counts for itself has a wrong gradient there for
    channels-last images (torch 2.11).
    """
    ones = image.new_ones(1, 1, *image.shape[2:], dtype=torch.promote_types(image.dtype, torch.float32))
    pad = (window[0] // 2, window[1] // 2)
    return F.avg_pool2d(ones, window, 1, pad, divisor_override=1).reciprocal()


def _convolves(image: Tensor, window: tuple[int, int]) -> bool:
    # What lies behind the border is counted here and taken back line by line, in place.
    return min(window) > 1 and runs_only(image, WORTH)


def _mean(image: Tensor, window: tuple[int, int], itself: float = 0.0) -> Tensor:
    """The mean over the window, what lies behind the border counted as zeros, and ``itself`` times the image."""
    channels, size = image.shape[1], window[0] * window[1]
    taps = [1 / size] * size
    taps[size // 2] += itself
    kernel = image.new_tensor(taps).view(1, 1, *window).expand(channels, -1, -1, -1)
    return F.conv2d(image, kernel, padding=(window[0] // 2, window[1] // 2), groups=channels)


def _border(image: Tensor, window: tuple[int, int]) -> Iterator[tuple[tuple[slice, ...], float]]:
    """Pairs of lines from which the window reaches over the border, and the window over what of it is inside."""
    for axis, size in zip((2, 3), window, strict=True):
        last = image.shape[axis] - 1
        for line in range(min(size // 2, last // 2 + 1)):
            other = last - line
            lines = slice(line, other + 1, max(other - line, 1))
            inside = min(line + size // 2, last) + 1
            yield (slice(None),) * axis + (lines,), size / inside


class _Pool(torch.autograd.Function):
    """``_pool``, with the difference in place in the gradient too; the engine would negate and add in two passes.

    Functions that torch.func can transform cost 40 us more a call: its transforms take ``_pool`` as it stands.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: tuple[int, int]) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(image)
        return _pool(image, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _spread(gradients[0], ctx.saved_tensors[0], ctx.window), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _pool(tangents[0], ctx.window)
