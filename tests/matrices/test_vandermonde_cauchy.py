"""Vandermonde, Cauchy and LowRank: Hydra's classes, blocks, long sequences."""

import pytest
import torch

from matmix.matrices import Cauchy, LowRank, Semiseparable, Vandermonde
from tests.fixtures import load_fixture


def _heads(fixture, name: str, heads: int) -> torch.Tensor:
    return fixture.input(name).unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(("length", "heads", "width"), [(8, 2, 4), (33, 4, 3)])
def test_hydra_vandermonde(length: int, heads: int, width: int) -> None:
    """The published class is V(q) - V(k)^T at angles 1e-3 q and 1e-3 k, scaled, plus the identity."""
    fixture = load_fixture(f"sequence/hydra_class_vandermonde_dd_L{length}_h{heads}")
    query, key, values = (_heads(fixture, name, heads) for name in ("q", "k", "v"))
    matrix = Vandermonde(1e-3 * query, length) - Vandermonde(1e-3 * key, length).mT
    mixed = matrix.matmul(values) / (2 * length * width) ** 0.5 + values
    fixture.check(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_vandermonde_splits_angles_at_any_length(columns: int) -> None:
    theta = torch.randn(1, 2, 70, 3, dtype=torch.float64)
    matrix = Vandermonde(theta, columns)
    values = torch.randn(1, 2, columns, 2, dtype=torch.float64)
    torch.testing.assert_close(matrix.matmul(values), matrix.to_dense() @ values)
    angle = 2 * torch.pi * theta.unsqueeze(3) * torch.arange(columns).view(-1, 1)
    torch.testing.assert_close(matrix.to_dense(), angle.cos().sum(-1))


def test_vandermonde_in_float32_is_exact_far_out() -> None:
    """At column 16000 an angle taken in float32 is wrong in the third digit."""
    theta = torch.rand(1, 1, 3, 2)
    dense = Vandermonde(theta, 16001).to_dense()
    exact = Vandermonde(theta.double(), 16001).to_dense()
    assert float((dense - exact).abs().max()) < 1e-6


def test_cauchy_entries_and_blocks() -> None:
    rows, columns = (0.1 + torch.rand(2, 3, n, 4, dtype=torch.float64) for n in (130, 70))
    matrix = Cauchy(rows, columns)
    entry = sum(1 / (rows[1, 2, 129, d] + columns[1, 2, 7, d]) for d in range(4))
    torch.testing.assert_close(matrix.to_dense()[1, 2, 129, 7], entry)
    values = torch.randn(2, 3, 70, 2, dtype=torch.float64)
    torch.testing.assert_close(matrix.matmul(values), matrix.to_dense() @ values)


def test_linear_attention_of_fla() -> None:
    """Causal, without normaliser: a semiseparable matrix that forgets nothing, scaled by 1 / sqrt(E)."""
    fixture = load_fixture("sequence/fla_linear_attn")
    query, key, values = (fixture.input(name).transpose(1, 2) for name in ("q", "k", "v"))
    matrix = Semiseparable(query * query.shape[3] ** -0.5, key, key.new_zeros(1, 2, 9))
    fixture.check(matrix.matmul(values).transpose(1, 2))
    dense = LowRank(query * query.shape[3] ** -0.5, key).to_dense().tril()
    torch.testing.assert_close(matrix.to_dense(), dense)
