"""Convolution and AveragePool against PyTorch's layers, in both layouts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matmix.matrices import AveragePool, Convolution


@pytest.mark.parametrize(("grid", "size"), [((11,), 5), ((4, 7), 3), ((2, 5), 7)])
def test_centred_is_the_depthwise_layer(grid: tuple[int, ...], size: int) -> None:
    torch.manual_seed(0)
    layer = (nn.Conv1d if len(grid) == 1 else nn.Conv2d)(6, 6, size, padding=size // 2, groups=6, bias=False).double()
    matrix = Convolution.centred(layer.weight.squeeze(1), grid)
    tokens = torch.randn(2, matrix.shape[3], 6, dtype=torch.float64)
    expected = layer(tokens.mT.unflatten(-1, grid)).flatten(2)
    for values in (tokens.mT.unsqueeze(-1), tokens.mT.contiguous().unsqueeze(-1)):
        torch.testing.assert_close(matrix.matmul(values).squeeze(-1), expected)


def test_causal_looks_back_only() -> None:
    kernel = torch.randn(2, 4, dtype=torch.float64)
    matrix = Convolution.causal(kernel, 9)
    dense = matrix.to_dense()[0]
    assert not bool(dense.triu(1).any())
    torch.testing.assert_close(dense[:, 5, 2:6], kernel)
    assert not bool(dense[:, 5, :2].any())


def test_tokens_are_not_copied() -> None:
    """The channels-last image of tokens is a view of them, and so are the tokens of its convolution."""
    tokens = torch.randn(2, 35, 8)
    matrix = Convolution.centred(torch.randn(8, 3, 3), (5, 7))
    mixed = matrix.matmul(tokens.mT.unsqueeze(-1))
    assert mixed.transpose(1, 2).flatten(2).is_contiguous()
    assert mixed.transpose(1, 2).flatten(2).data_ptr() == mixed.data_ptr()


def test_refuses_a_kernel_of_other_axes() -> None:
    with pytest.raises(ValueError, match="Convolution: kernel must be"):
        Convolution.centred(torch.randn(2, 3), (4, 5))


@pytest.mark.parametrize(("grid", "window"), [((9,), 3), ((4, 7), 3), ((3, 5), 5)])
def test_pool_is_the_layer(grid: tuple[int, ...], window: int) -> None:
    tokens = torch.randn(2, torch.Size(grid).numel(), 6, dtype=torch.float64)
    pool = F.avg_pool1d if len(grid) == 1 else F.avg_pool2d
    expected = pool(tokens.mT.unflatten(-1, grid), window, 1, window // 2, count_include_pad=False).flatten(2).mT
    matrix = AveragePool.of(tokens.unsqueeze(1), grid, window)
    torch.testing.assert_close(matrix.matmul(tokens.unsqueeze(1)).squeeze(1), expected)


def test_pool_with_a_mask() -> None:
    torch.manual_seed(0)
    mask = torch.rand(3, 12) < 0.4
    mask[0] = False
    values = torch.randn(3, 2, 12, 2, dtype=torch.float64, requires_grad=True)
    for grid in ((12,), (3, 4)):
        matrix = AveragePool.of(values, grid, 3, mask)
        dense = matrix.to_dense()
        sums = dense.sum(-1)
        assert bool(((sums - 1).abs() < 1e-12).logical_or(sums == 0).all()) and not bool(dense[0].any())
        assert not bool(dense.masked_select(~mask[:, None, None, :]).any())
        torch.testing.assert_close(matrix.matmul(values), dense @ values)
        torch.testing.assert_close(matrix.rmatmul(values), dense.mT @ values)
        torch.testing.assert_close(matrix.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
        (grad,) = torch.autograd.grad(matrix.matmul(values).sum(), values)
        assert bool(torch.isfinite(grad).all())


def test_pool_refuses_window() -> None:
    with pytest.raises(ValueError, match="AveragePool: window must be a whole number in"):
        AveragePool.of(torch.randn(1, 1, 4, 2), (4,), 0)
