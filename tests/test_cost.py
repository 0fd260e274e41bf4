"""Counts against what a hand computes from the sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from matmix.cost import count, fft_operations, measure, state_bytes, tokens
from matmix.mixers import create_mixer
from sequence.layers.block import Block, BlockOptions


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def macs(function, *inputs: Tensor) -> int:
    report = count(Call(function), *inputs)
    assert report.fft_flops == 0 and report.uncounted == ()
    return report.macs


def test_linear_counts_weights_and_products():
    report = count(nn.Linear(6, 5), torch.randn(2, 3, 6))
    assert (report.parameters, report.trainable, report.macs, report.fft_flops) == (35, 35, 2 * 3 * 6 * 5, 0)


def test_shared_and_frozen_parameters():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    third = nn.Linear(4, 4, bias=False).requires_grad_(False)
    report = count(nn.Sequential(first, second, third), torch.randn(1, 4))
    assert (report.parameters, report.trainable, report.macs) == (32, 16, 48)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        pytest.param(torch.matmul, [(3, 4), (4,)], 12, id="matrix-vector"),
        pytest.param(torch.matmul, [(4,), (4,)], 4, id="vector-vector"),
        pytest.param(torch.matmul, [(2, 5, 3), (2, 3, 7)], 2 * 5 * 3 * 7, id="batched"),
        pytest.param(torch.addmv, [(3,), (3, 4), (4,)], 12, id="addmv"),
        pytest.param(lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 120, id="einsum"),
        pytest.param(torch.cdist, [(2, 4), (3, 4)], 24, id="distances"),
        pytest.param(lambda x: F.avg_pool1d(x, 3, 1, 1), [(1, 8, 5)], 8 * 5 * 3, id="avg_pool1d"),
        pytest.param(lambda x: F.avg_pool2d(x, 3, 1, 1), [(1, 8, 5, 4)], 8 * 20 * 9, id="avg_pool2d"),
        pytest.param(lambda x: F.adaptive_avg_pool2d(x, (2, 2)), [(1, 3, 4, 6)], 72, id="adaptive"),
        pytest.param(F.gelu, [(9, 9)], 0, id="elementwise"),
    ],
)
def test_operators(function, shapes, expected):
    assert macs(function, *(torch.randn(shape) for shape in shapes)) == expected


def test_depthwise_and_grouped_convolutions_count_their_own_size():
    x = torch.randn(2, 8, 5, 6)
    for groups in (1, 2, 8):
        conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
        assert count(conv, x).macs == 2 * 8 * 5 * 6 * (8 // groups) * 9


def test_a_complex_product_is_four_real_ones():
    a, b = torch.randn(3, 4, dtype=torch.cfloat), torch.randn(4, 5, dtype=torch.cfloat)
    assert macs(torch.matmul, a, b) == 4 * 3 * 4 * 5


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    query = torch.randn(2, 3, 10, 4)
    expected = 2 * 2 * 3 * 10 * 10 * 4  # scores, and the product with the values
    assert macs(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=causal), query) == expected


def test_ffts_stand_apart():
    x = torch.randn(2, 3, 8, 16)
    n = 8 * 16
    report = count(Call(lambda x: torch.fft.irfft2(torch.fft.rfft2(x))), x)
    assert report.macs == 0
    assert report.fft_flops == 2 * 6 * 2.5 * n * math.log2(n)
    report = count(Call(torch.fft.fft), torch.randn(7, 12, dtype=torch.cfloat))
    assert report.fft_flops == round(7 * 5 * 12 * math.log2(12))
    # along one axis only
    assert count(Call(lambda x: torch.fft.rfft(x, dim=2)), x).fft_flops == 2 * 3 * 16 * 2.5 * 8 * 3


def test_fft_formula():
    assert fft_operations(8) == 5 * 8 * 3
    assert fft_operations(8, 4, real=True) == 4 * 2.5 * 8 * 3
    assert fft_operations(1) == fft_operations(0) == 0


def test_recurrent_layer_and_fused_encoder_layer():
    x = torch.randn(2, 5, 8)  # 4 gates, input and hidden weights
    assert count(nn.LSTM(8, 6, batch_first=True), x).macs == 2 * 5 * 4 * 6 * (8 + 6)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    projections, scores, mlp = 2 * 5 * 4 * 8 * 8, 2 * 2 * 5 * 5 * 8, 2 * 2 * 5 * 8 * 16
    report = count(layer.eval(), x)
    assert report.macs == projections + scores + mlp and report.uncounted == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_operator_without_a_formula_is_named():
    report = count(Call(F.bilinear), torch.randn(2, 4), torch.randn(2, 4), torch.randn(3, 4, 4))
    assert report.macs == 0 and report.uncounted == ("aten._trilinear",)
    assert "without aten._trilinear" in str(report)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    before = [module.training for module in model.modules()], model[0].running_mean.clone()
    count(model, torch.randn(8, 4))
    assert [module.training for module in model.modules()] == before[0]
    assert torch.equal(model[0].running_mean, before[1])
    with pytest.raises(RuntimeError):
        count(model, torch.randn(8, 5))
    assert [module.training for module in model.modules()] == before[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bytes_of_state():
    """Keys, values and a mark for each token; a fixed state; the window of a convolution in front."""

    def bytes_of(mixer: str, length: int = 12, conv: int = 0) -> int | None:
        model = Block(mixer, 8, (length,), BlockOptions(conv=conv))
        return state_bytes(model, torch.zeros(2, length, 8))

    assert bytes_of("attention(head_dim=4, causal=True)") == 12 * (2 * 8 * 4 + 1)
    assert bytes_of("attention(head_dim=4, causal=True)", 20, conv=3) == 20 * (2 * 8 * 4 + 1) + 2 * 8 * 4
    fixed = create_mixer("retention(heads=2)", 8).init_state(1)
    expected = sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(fixed))
    assert bytes_of("retention(heads=2)") == bytes_of("retention(heads=2)", 20) == expected > 0
    assert bytes_of("identity") == 0 and bytes_of("attention(head_dim=4)") is None is bytes_of("hydra(head_dim=4)")
    assert state_bytes(nn.Linear(8, 8), torch.zeros(2, 8)) is None


def test_tokens_are_what_the_mixers_see() -> None:
    """Of all examples together; none where parts of the model see different numbers, or there is no mixer."""
    x = torch.randn(3, 8, 8)
    same = nn.Sequential(create_mixer("sep_conv", 8), create_mixer("attention(head_dim=4)", 8))
    assert tokens(same, x) == 24
    assert tokens(nn.Linear(8, 8), x) is None
    halved = Call(lambda y: y[:, ::2])
    assert tokens(nn.Sequential(same, halved, create_mixer("sep_conv", 8)), x) is None


def test_all_of_them_are_measured_in_one_forward() -> None:
    x, calls = torch.randn(3, 8, 8), []
    causal = "attention(head_dim=4, causal=True)"
    for mixer, conv in ((causal, 3), ("retention(heads=2)", 0), ("hydra(head_dim=4)", 3), ("identity", 0)):
        model = Block(mixer, 8, (8,), BlockOptions(conv=conv))
        found = count(model, x), state_bytes(model, x), tokens(model, x)
        handle = model.register_forward_hook(lambda module, args, out: calls.append(1))
        assert measure(model, x) == found and len(calls) == 1
        handle.remove(), calls.clear()
