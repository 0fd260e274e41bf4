"""Convolution, batch norm and activation as one layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vision.layers.conv_norm import ConvNorm, ImageConvNorm

FORMS = [
    {"kernel": 1},
    {"kernel": 1, "stride": 2, "act": "relu"},
    {"kernel": 3, "stride": 2, "act": "gelu"},
    {"kernel": 3, "groups": 4, "dilation": 2, "act": "silu"},
]


@pytest.mark.parametrize("options", FORMS)
def test_is_the_three_in_turn(options: dict) -> None:
    """In training and outside of it, folded for good, and with the gradients of the parts."""
    torch.manual_seed(0)
    layer = ConvNorm(4, 8, **options).double().train()
    twin = copy.deepcopy(layer)
    plain = nn.Sequential(twin.conv, twin.norm, twin.act)
    x = torch.randn(2, 7, 10, 4, dtype=torch.float64)
    for training in (True, False):
        layer.train(training), plain.train(training)
        out, expected = layer(x), plain(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(out, expected)
        assert layer.out_grid((7, 10)) == out.shape[1:3]
        wanted = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))
        got = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        for mine, reference in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    fused = copy.deepcopy(layer).fuse_()
    assert isinstance(fused.norm, nn.Identity) and fused.conv.bias is not None
    for training in (True, False):
        torch.testing.assert_close(fused.train(training)(x), expected)
    torch.testing.assert_close(fused.fuse_()(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_image_in_any_memory_format(training: bool) -> None:
    layer = ImageConvNorm(3, 8, 3, 2, act="relu").train(training)
    image = torch.randn(2, 3, 9, 12)
    out = layer(image)
    assert out.shape == (2, 5, 6, 8) and out.is_contiguous()
    torch.testing.assert_close(layer(image.contiguous(memory_format=torch.channels_last)), out)


class Doubled(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("act", [nn.GELU("tanh"), Doubled(), nn.ReLU6()])
def test_an_activation_put_in_its_place_is_the_one_that_runs(act: nn.Module) -> None:
    layer = ConvNorm(4, 8, 3, act="relu").eval()
    layer.act = act
    x = torch.randn(2, 5, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), act(layer.norm(layer.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="act must be one of"):
        ConvNorm(4, 4, act="sine")
