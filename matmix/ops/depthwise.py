"""Depthwise convolution of images and sequences: on a GPU by kernels, on CPU with a gradient of the kernel of its own.

oneDNN has a depthwise algorithm for the gradient of a kernel, but without AVX-512 only for kernels of up to three
columns and little padding. Wider ones go through that of a full convolution, as if every channel were eight: several
times the time of everything else in a training step, and scratch memory of the size of the image. So such a kernel is
put together here from strips of three columns, each of the image shifted and padded to suit, a few samples at a time
so that the copies stay in cache. A sequence is turned into a column, whose kernel has one column only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.activations import looked_on, plain_numbers
from matmix.ops.function import Function, call
from matmix.ops.gpu import in_triton
from matmix.ops.plain import is_plain
from matmix.ops.private import taken_together

_STRIP = 3  # columns of a kernel that the depthwise algorithm takes
_CACHE = 2**19  # numbers of an image that are worked on together
WORTH = 2**20  # multiplications from which the calls for the strips pay
_LARGE = 2**21  # numbers of an image from which the GPU's time outweighs that of Python to start our kernels


def convolve(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int], silu: bool = False) -> Tensor:
    """``y[p] = bias + sum_t kernel[t] image[p + t - before]`` in every channel, with zeros beyond the border.

    Args:
        image: ``(B, C, rows, columns)``; channels last in memory is fastest. A sequence is one row.
        kernel: ``(C, 1, k_rows, k_columns)``.
        bias: ``(C,)``.
        before: taps of the kernel that lie before the position, along every axis.
        silu: return ``silu(y)``. One kernel on a GPU, which at every size saves launches.

    Returns:
        ``(B, C, rows, columns)``.
    """
    if (
        in_triton(image, kernel, bias)
        and (silu or image.numel() >= _LARGE)
        and image.stride(1) == 1
        and _alike(image, kernel, bias)
    ):
        from matmix.ops import depthwise_triton

        return depthwise_triton.convolve(image, kernel, bias, before, silu)
    mixed = by_torch(image, kernel, bias, before)
    if not silu:
        return mixed
    # What was cut is written anew: products that read it would copy it.
    whole = mixed.permute(0, 2, 3, 1).is_contiguous()
    return F.silu(mixed, inplace=whole and not looked_on(mixed))


def conv(
    layer: nn.Module,
    image: Tensor,
    padding: Sequence[tuple[int, int]] | None = None,
    silu: bool = False,
    *,
    axes: int = 2,
) -> Tensor:
    """``layer(image)`` for a depthwise convolution of stride 1 that keeps the size of the image.

    A plain layer's weights go through ``convolve``; whatever else stands in its place is called.

    Args:
        layer: one that convolves rows ``(B, C, L)`` or images.
        image: ``(B, C, rows, columns)``; a sequence is one row.
        padding: zeros to put before and after along every axis, for a layer without padding; None: the layer pads.
        silu: return ``silu(y)``.
        axes: 1 for a layer that takes rows; that of ``padding`` where it is given.

    Returns:
        ``(B, C, rows, columns)``.
    """
    axes = axes if padding is None else len(padding)
    kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if axes == 1 else nn.Conv2d
    if is_plain(layer, kind) and _keeps(layer, image.shape[1], padding):
        before = [0] * (2 - axes) + list(layer.padding if padding is None else (b for b, _ in padding))
        kernel = layer.weight if axes == 2 else layer.weight.unsqueeze(2)
        return convolve(image, kernel, layer.bias, before, silu)  # type: ignore[arg-type]
    if padding is not None:
        image = F.pad(image, [n for pair in reversed(padding) for n in pair])
    out = layer(image) if axes == 2 else layer(image.squeeze(2)).unsqueeze(2)
    return F.silu(out) if silu else out


def _keeps(layer: nn.Conv1d | nn.Conv2d, channels: int, padding: Sequence[tuple[int, int]] | None) -> bool:
    """Whether the layer's options are those of ``convolve``."""
    own = [(p, p) for p in layer.padding if isinstance(p, int)]
    given, own = (own, [(0, 0)] * len(own)) if padding is None else (list(padding), own)
    return (
        layer.groups == layer.in_channels == layer.out_channels == channels
        and all(s == 1 for s in (*layer.stride, *layer.dilation))
        and layer.padding_mode == "zeros"
        and all(b == 0 for pair in own for b in pair)
        and [b + a + 1 for b, a in given] == list(layer.kernel_size)
    )


def by_torch(image: Tensor, kernel: Tensor, bias: Tensor | None, before: Sequence[int]) -> Tensor:
    """``convolve`` by PyTorch's convolution, on every device and through every transform."""
    padding = [max(b, k - 1 - b) for b, k in zip(before, kernel.shape[2:], strict=True)]
    # A tracer's stand-in for a tensor has no sizes: whether these are plain numbers comes first.
    ours = torch.is_grad_enabled() and plain_numbers(image, kernel) and _pays(image, kernel, padding)
    mixed = call(_Depthwise, image, kernel, bias, padding) if ours else _padded(image, kernel, bias, padding)
    # The padding is alike on both sides, by the longer one: keep the part that is meant. Of tokens, since autograd pads
    # the gradient in the order of the axes here; and not all of it, which would cost it two passes for nothing.
    tokens = mixed.permute(0, 2, 3, 1)
    for axis, (p, b) in enumerate(zip(padding, before, strict=True), 1):
        if tokens.shape[axis] != image.shape[axis + 1]:
            tokens = tokens.narrow(axis, p - b, image.shape[axis + 1])
    return tokens.permute(0, 3, 1, 2)


def _alike(image: Tensor, kernel: Tensor, bias: Tensor | None) -> bool:
    """Whether PyTorch would take these tensors together; where not, it says what is wrong with them."""
    others = [kernel] if bias is None else [kernel, bias]
    return (
        all(t.device == image.device for t in others)
        and (torch.is_autocast_enabled("cuda") or all(t.dtype == image.dtype for t in others))
        and image.dim() == kernel.dim() == 4
        and kernel.shape[:2] == (image.shape[1], 1)
        and (bias is None or bias.shape == image.shape[1:2])
    )


def _padded(image: Tensor, kernel: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    return F.conv2d(image, kernel, bias, padding=padding, groups=image.shape[1])


def _pays(image: Tensor, kernel: Tensor, padding: list[int]) -> bool:
    """Whether a gradient of the kernel will be wanted, and strips give it sooner."""
    return (
        kernel.requires_grad
        and torch.backends.mkldnn.is_available()
        and kernel.shape[3] > _STRIP
        and image.numel() * kernel[0].numel() >= WORTH
        and image.stride(1) == 1
        and all(p < k <= n for p, k, n in zip(padding, kernel.shape[2:], image.shape[2:], strict=True))
    )


class _Depthwise(Function):
    """``_padded``, with the gradient of the kernel by strips."""

    @staticmethod
    def forward(image: Tensor, kernel: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
        return _padded(image, kernel, bias, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, kernel, _, ctx.padding = inputs
        ctx.save_for_backward(image, kernel)
        ctx.save_for_forward(image, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, kernel = ctx.saved_tensors  # read once: under checkpointing a second time is an error
        to_image, to_kernel, to_bias = ctx.needs_input_grad[:3]
        # What is differentiated again, or taken for many gradients at once, goes the way that allows for it.
        strips = to_kernel and not torch.is_grad_enabled() and plain_numbers(gradient) and not taken_together(gradient)
        wanted = [to_image, to_kernel and not strips, False]
        d_image, d_kernel, _ = torch.ops.aten.convolution_backward(
            gradient, image, kernel, None, [1, 1], ctx.padding, [1, 1], False, [0, 0], image.shape[1], wanted
        )
        if strips:
            d_kernel = _by_strips(image, gradient, kernel.shape, ctx.padding)
        return d_image, d_kernel, gradient.sum((0, 2, 3)) if to_bias else None, None

    @staticmethod
    def jvp(ctx: Any, d_image: Tensor | None, d_kernel: Tensor | None, d_bias: Tensor | None, _: None) -> Tensor:
        image, kernel = ctx.saved_tensors
        parts = [] if d_image is None else [_padded(d_image, kernel, None, ctx.padding)]
        if d_kernel is not None:
            parts.append(_padded(image, d_kernel, None, ctx.padding))
        if d_bias is not None:
            parts.append(d_bias.view(-1, 1, 1).expand_as(parts[0]))
        return sum(parts[1:], parts[0])


def _by_strips(image: Tensor, gradient: Tensor, shape: torch.Size, padding: list[int]) -> Tensor:
    """``sum_p gradient[p] image[p + t - padding]`` for every channel and tap t of a kernel of that shape."""
    if image.shape[2] == 1 and shape[3] > 1:
        turned = torch.Size((*shape[:2], shape[3], 1))
        return _by_strips(_column(image), _column(gradient), turned, padding[::-1]).mT
    (channels, rows, columns), (high, wide) = gradient.shape[1:], shape[2:]
    samples = max(1, _CACHE // max(1, gradient[:1].numel()))
    step = rows if samples > 1 else max(high, _CACHE // (channels * columns))
    total = gradient.new_zeros(shape)
    for several, given in zip(image.split(samples), gradient.split(samples), strict=True):
        for top in range(0, rows, step):
            part = given.narrow(2, top, min(step, rows - top))
            part = part.contiguous(memory_format=torch.channels_last)
            for left in range(0, wide, _STRIP):
                strip = total[..., left : left + _STRIP]
                size = (part.shape[2] + high - 1, columns + strip.shape[3] - 1)
                strip += _valid(_window(several, top - padding[0], left - padding[1], *size), part, strip)
    return total


def _valid(image: Tensor, gradient: Tensor, kernel: Tensor) -> Tensor:
    """The gradient of a kernel that went over an image without padding; of the kernel only the shape matters."""
    wanted, channels = [False, True, False], image.shape[1]
    return torch.ops.aten.convolution_backward(
        gradient, image, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], channels, wanted
    )[1]


def _window(image: Tensor, top: int, left: int, rows: int, columns: int) -> Tensor:
    """A copy of a part of an image, with zeros beyond its border."""
    return F.pad(image, (-left, left + columns - image.shape[3], -top, top + rows - image.shape[2]))


def _column(row: Tensor) -> Tensor:
    """A row ``(B, C, 1, L)`` as a column ``(B, C, L, 1)``, channels last also by its strides."""
    return row.squeeze(2).mT.unsqueeze(2).permute(0, 3, 1, 2)
