"""Weights of layers that are more than their weights, and convolutions by them: the layer's own results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matmix.ops.depthwise import conv
from matmix.ops.effective import depthwise_of, exactly, linear_of, tensor_of
from matmix.testing.compare import close
from matmix.testing.layer_laws import Adapted


def beside(layer: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor | None]:
    """The layer with another one of its kind beside it, and the weights of both together."""
    delta = copy.deepcopy(layer)
    for parameter in delta.parameters():
        nn.init.normal_(parameter)
    bias = None if layer.bias is None else layer.bias + delta.bias  # type: ignore[operator]
    return Adapted(layer, delta), layer.weight + delta.weight, bias  # type: ignore[operator]


@pytest.mark.parametrize("bias", [False, True])
def test_weights_of_a_linear_layer(bias: bool) -> None:
    layer = nn.Linear(5, 3, bias=bias).double()
    assert linear_of(layer, 5) == (layer.weight, layer.bias)
    adapted, weight, expected = beside(layer)
    got, shift = linear_of(adapted, 5)
    close(got, weight, "weight")
    close(shift, torch.zeros(3) if expected is None else expected, "bias", scale=1.0)  # type: ignore[arg-type]
    got.sum().backward()
    assert all(p.grad is not None for p in (adapted.layer.weight, adapted.delta.weight))  # type: ignore[union-attr]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_kernel_of_a_convolution(axes: int, bias: bool) -> None:
    layer = (nn.Conv1d if axes == 1 else nn.Conv2d)(4, 4, 3, groups=4, bias=bias).double()
    assert depthwise_of(layer, 4, (3,) * axes) == (layer.weight, layer.bias)
    adapted, weight, expected = beside(layer)
    kernel, shift = depthwise_of(adapted, 4, (3,) * axes)
    close(kernel, weight, "kernel")
    close(shift, torch.zeros(4) if expected is None else expected, "bias", scale=1.0)  # type: ignore[arg-type]


def test_a_convolution_that_mixes_channels_has_no_kernel_a_channel() -> None:
    layer = nn.Conv1d(4, 4, 3, groups=4, bias=False)
    with pytest.raises(ValueError, match="in the place of a depthwise convolution mixes channels"):
        depthwise_of(Adapted(layer, nn.Conv1d(4, 4, 3)), 4, (3,))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("padding", [None, [(1, 1), (2, 2)], [(2, 2)], [(4, 0)]])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_convolution_by_its_layer(padding: list[tuple[int, int]] | None, silu: bool, adapted: bool) -> None:
    torch.manual_seed(0)
    axes = 2 if padding is None else len(padding)
    size, built = ((3, 5), (1, 2) if padding is None else 0) if axes == 2 else (5, 0)
    layer = (nn.Conv2d if axes == 2 else nn.Conv1d)(4, 4, size, padding=built, groups=4).double()  # type: ignore[arg-type]
    weight, bias = layer.weight, layer.bias
    run, seen = layer, []
    if adapted:
        run, weight, bias = beside(layer)  # type: ignore[assignment]
    run.register_forward_hook(lambda *_: seen.append(1))
    image = torch.randn(2, 6 if axes == 2 else 1, 7, 4, dtype=torch.float64).permute(0, 3, 1, 2)
    margins = [(1, 1), (2, 2)] if padding is None else [(0, 0), *padding][-2:]
    around = F.pad(image, [n for pair in reversed(margins) for n in pair])
    kernel = weight if axes == 2 else weight.unsqueeze(2)
    expected = F.conv2d(around, kernel, bias, groups=4)
    close(conv(run, image, padding, silu), F.silu(expected) if silu else expected, "convolution")
    assert seen == [1]
    run._forward_hooks.clear()
    close(conv(run, image, padding, silu), F.silu(expected) if silu else expected, "convolution, no hook")


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"groups": 2}])
def test_a_convolution_with_other_options_is_called(options: dict[str, object]) -> None:
    layer = nn.Conv2d(4, 4, 3, **{"padding": 1, "groups": 4} | options).double()  # type: ignore[arg-type]
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    close(conv(layer, image), layer(image), "convolution")


def test_wide_layers_and_numbers() -> None:
    x = torch.randn(2, 6).bfloat16()
    for layer in (nn.Linear(6, 6).bfloat16(), nn.RMSNorm(6, eps=1e-5).bfloat16()):
        close(exactly(layer, x), copy.deepcopy(layer).float()(x.float()), "in float32")
        layer.register_forward_hook(lambda *_: None)
        assert exactly(layer, x).dtype == torch.float32
        close(exactly(layer, x), layer(x), "called")
    assert tensor_of(nn.Linear(2, 2).double()).dtype == torch.float64
    assert tensor_of(nn.GELU()).dtype == torch.float32
