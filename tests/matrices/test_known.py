"""Matrices that depend on their own values: products at hand, GELU as a gate."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from matmix.matrices import Dense, Gate, Known, Product


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


def test_the_product_at_hand_is_for_that_tensor_alone() -> None:
    inner, values, _, _ = _perceptron()
    marked = torch.zeros_like(values)  # a wrong product tells which way was taken
    known = Known(inner, values, marked)
    assert known.matmul(values) is marked
    torch.testing.assert_close(known.matmul(values.clone()), inner.matmul(values))
    moved = pytree.tree_map(lambda leaf: leaf.clone(), known)
    torch.testing.assert_close(moved.matmul(values), inner.matmul(values))


def test_gates_of_other_activations() -> None:
    inner, values = Dense(torch.randn(1, 3, 7, 5, dtype=torch.float64)), torch.randn(2, 3, 5, 1, dtype=torch.float64)
    hidden = inner.matmul(values)
    torch.testing.assert_close(Gate(inner, values, kind="relu").matmul(hidden), F.relu(hidden))
    shrunk = Gate(inner, values, kind="softshrink", threshold=0.5).matmul(hidden)
    torch.testing.assert_close(shrunk, F.softshrink(hidden, 0.5))
    with pytest.raises(ValueError, match="kind must be"):
        Gate(inner, values, kind="tanh").matmul(hidden)
