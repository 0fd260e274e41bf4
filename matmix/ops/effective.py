"""What a layer does, as weights, where it may be more than its weights (an adapter, a quantised or pruned layer)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype


def tensor_of(*modules: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that a module computes in: its first, or that of the next module.

    A quantised layer has none that are numbers, and takes and gives the default dtype.
    """
    device = None
    for module in modules:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            if tensor.dtype.is_floating_point and not tensor.is_quantized:
                return tensor
            device = tensor.device if device is None else device
    return torch.empty(0, device=device)


def exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` in float32 at least, for a linear layer or RMS norm: a plain one by its weights as wide as that, any
    other in the dtype that it computes in."""
    if is_plain(layer, nn.Linear):
        dtype = working_dtype(x, layer.weight)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return F.linear(x.to(dtype), layer.weight.to(dtype), bias)
    if is_plain(layer, nn.RMSNorm) and layer.weight is not None:
        dtype = working_dtype(x, layer.weight)
        return F.rms_norm(x.to(dtype), layer.normalized_shape, layer.weight.to(dtype), layer.eps)
    out = layer(x.to(tensor_of(layer).dtype))
    return out.to(working_dtype(x, out))


def linear_of(layer: nn.Module, inputs: int) -> tuple[Tensor, Tensor | None]:
    """Weight ``(O, I)`` and bias ``(O,)`` with which a linear map does what the layer does.

    A plain layer's are its own; else it is called with zeros and with every unit vector, and gradients pass.
    """
    if is_plain(layer, nn.Linear):
        return layer.weight, layer.bias
    like = tensor_of(layer)
    out = layer(torch.cat((like.new_zeros(1, inputs), torch.eye(inputs, dtype=like.dtype, device=like.device))))
    return (out[1:] - out[0]).mT, out[0]


def affine_of(layer: nn.Module, inputs: int) -> tuple[Tensor, Tensor]:
    """``linear_of``, with zeros for a bias where there is none."""
    weight, bias = linear_of(layer, inputs)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def depthwise_of(layer: nn.Module, channels: int, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Kernel ``(O, 1, *size)`` and bias ``(O,)`` with which a depthwise convolution without padding does what the layer
    does.

    A plain layer's are its own; else it is called with zeros and with an impulse in every channel, and gradients pass.

    Raises:
        ValueError: where an output channel hangs on more than its own input channel, as with an adapter whose inner
            convolution is a full one: no kernel a channel says that.
    """
    kind = nn.Conv1d if len(size) == 1 else nn.Conv2d
    if is_plain(layer, kind):
        return layer.weight, layer.bias
    like = tensor_of(layer)
    middle: tuple[Any, ...] = (..., *(k - 1 for k in size))
    signal = like.new_zeros(3, channels, *(2 * k - 1 for k in size))
    signal[1][middle] = 1
    gains = torch.linspace(-1, 2, channels, dtype=like.dtype, device=like.device)
    signal[2][middle] = gains
    zero, one, gained = layer(signal)
    axes = tuple(range(1, 1 + len(size)))
    kernel = (one - zero).flip(axes)
    if not torch.compiler.is_compiling():
        expected = gains.repeat_interleave(len(kernel) // channels).view(-1, *[1] * len(size)) * kernel
        wrong = ((gained - zero).flip(axes) - expected).abs().max()
        if wrong > 1e-2 * kernel.abs().max():
            raise ValueError(
                f"{type(layer).__name__} in the place of a depthwise convolution mixes channels, so there is no matrix "
                "with a kernel a channel; its product with tokens is there, by forward"
            )
    return kernel.unsqueeze(1), zero.flatten(1)[:, 0]
