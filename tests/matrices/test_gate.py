"""Matrices that depend on their own values: activations as gates."""

import pytest
import torch
from torch.nn import functional as F

from matmix.matrices import Dense, Gate, Product


def _perceptron() -> tuple[Product, torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.randn(2, 3, 5, 1, dtype=torch.float64)
    first, second = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    hidden = first @ values
    layer = Dense(first[None, None])
    matrix = Product((Dense(second[None, None]), Gate(layer, values), layer))
    return matrix, values, second, hidden


def test_a_perceptron_is_a_matrix() -> None:
    matrix, values, second, hidden = _perceptron()
    torch.testing.assert_close(matrix.matmul(values), second @ F.gelu(hidden))


def test_gates_of_other_activations() -> None:
    inner, values = Dense(torch.randn(1, 3, 7, 5, dtype=torch.float64)), torch.randn(2, 3, 5, 1, dtype=torch.float64)
    hidden = inner.matmul(values)
    torch.testing.assert_close(Gate(inner, values, kind="relu").matmul(hidden), F.relu(hidden))
    shrunk = Gate(inner, values, kind="softshrink", threshold=0.5).matmul(hidden)
    torch.testing.assert_close(shrunk, F.softshrink(hidden, 0.5))
    with pytest.raises(ValueError, match="kind must be"):
        Gate(inner, values, kind="tanh").matmul(hidden)
