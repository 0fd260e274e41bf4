"""Softmax: masks, biases, rows without keys."""

import pytest
import torch
from torch.nn import functional as F

from matmix.matrices import Softmax
from tests.fixtures import load_fixture


def _parts(length: int = 7, columns: int = 7, batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(batch, 3, n, 4, dtype=torch.float64) for n in (length, columns, columns))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_fast_product_is_the_definition(causal: bool, biased: bool, masked: bool) -> None:
    query, key, values = _parts()
    mask = torch.rand(2, 7) < 0.6 if masked else None
    bias = torch.randn(1, 3, 7, 7, dtype=torch.float64) if biased else None
    if bias is not None:
        bias[:, :, 2], bias[:, 0, 4, 1:] = -torch.inf, -torch.inf  # a bias may hide pairs, and a row from all keys
    matrix = Softmax(query, key, mask, bias, factor=0.7, causal=causal)
    scores = 0.7 * query @ key.mT + (bias if biased else 0)
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & mask[:, None, None]
    weights = scores.exp() * seen
    expected = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    torch.testing.assert_close(matrix.to_dense(), expected)
    torch.testing.assert_close(matrix.matmul(values), expected @ values)
    torch.testing.assert_close(matrix.rmatmul(values), expected.mT @ values)
    torch.testing.assert_close(matrix.diagonal(), expected.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden_by", ["mask", "bias", "both"])
def test_rows_without_keys_are_zero_and_so_are_their_gradients(dtype: torch.dtype, hidden_by: str) -> None:
    query, key, values = (t.to(dtype).requires_grad_() for t in _parts())
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 3:] = True
    bias = torch.zeros(2, 1, 7, 7, dtype=dtype).masked_fill(~mask[:, None, None], -torch.inf)
    matrix = Softmax(
        query, key, None if hidden_by == "bias" else mask, None if hidden_by == "mask" else bias, causal=True
    )
    out = matrix.matmul(values)
    assert not bool(out[0].any()) and not bool(out[1, :, :3].any()) and bool(out[1, :, 3:].any())
    for result in (out, matrix.to_dense(), matrix.rmatmul(values)):
        grads = torch.autograd.grad(result.float().square().sum(), (query, key, values), allow_unused=True)
        for grad in grads:
            if grad is not None:
                assert bool(torch.isfinite(grad).all()) and not bool(grad[0].any())


def test_more_rows_than_a_block() -> None:
    query, key, values = _parts(length=601, columns=300, batch=1)
    matrix = Softmax(query, key, causal=True)
    dense = matrix.to_dense()
    tall = torch.randn(1, 3, 601, 2, dtype=torch.float64)
    torch.testing.assert_close(matrix.rmatmul(tall), dense.mT @ tall)
    torch.testing.assert_close(matrix.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(matrix.matmul(values), dense @ values)


def test_one_head_serves_many() -> None:
    query, key, values = _parts()
    matrix = Softmax(query[:, :1], key[:, :1], torch.rand(2, 7) < 0.7)
    torch.testing.assert_close(matrix.matmul(values), matrix.to_dense() @ values)


def test_hydra_attention() -> None:
    """Hydra's data-dependent attention class adds its values."""
    fixture = load_fixture("sequence/hydra_class_attention_dd_L8_h2")
    query, key, values = (fixture.input(name).unflatten(-1, (2, -1)).transpose(1, 2) for name in ("q", "k", "v"))
    mixed = Softmax(query, key).matmul(values) + values
    fixture.check(mixed.transpose(1, 2).flatten(2))


def test_large_scores_do_not_overflow() -> None:
    query, key, values = (60 * t.float() for t in _parts())
    matrix = Softmax(query, key, torch.ones(2, 7, dtype=torch.bool))
    assert bool(torch.isfinite(matrix.matmul(values)).all())
    torch.testing.assert_close(matrix.matmul(values), F.scaled_dot_product_attention(query, key, values))
