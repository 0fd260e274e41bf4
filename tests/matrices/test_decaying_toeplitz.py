"""The kernel of decaying modes against its sum, at the edges of the unit disc, and as a recurrence."""

from __future__ import annotations

import math

import pytest
import torch

from matmix.matrices import DecayingToeplitz


@pytest.mark.parametrize("length", [1, 2, 3, 4, 15, 16, 17, 97])
def test_taps_are_the_sum_of_modes(length: int) -> None:
    torch.manual_seed(0)
    matrix = DecayingToeplitz.example((length,), 2, 3)
    poles = torch.view_as_complex(matrix.log_poles).exp()
    weights = torch.view_as_complex(matrix.coefficients)
    expected = torch.stack([(weights * poles**lag).sum(-1).real for lag in range(length)], -1)
    torch.testing.assert_close(matrix.taps(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decays_of_0_and_1(dtype: torch.dtype) -> None:
    log_poles = torch.tensor([[-math.inf, 0.3], [0.0, 0.0], [-1000.0, 2.0]], dtype=dtype).view(1, 1, 3, 2)
    log_poles.requires_grad_()
    matrix = DecayingToeplitz(log_poles, torch.ones(1, 1, 3, 2, dtype=dtype), 4096)
    values = torch.randn(1, 1, 4096, 1, dtype=dtype)
    taps = matrix.taps()
    assert float(taps[0, 0, 0].detach()) == 3 and bool((taps[0, 0, 1:] == 1).all())
    out = matrix.matmul(values)
    out.sum().backward()
    assert out.dtype == dtype and bool(torch.isfinite(out).all())
    assert log_poles.grad is not None and bool(torch.isfinite(log_poles.grad).all())


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_as_a_recurrence(length: int) -> None:
    torch.manual_seed(0)
    matrix = DecayingToeplitz.example((length,), 2, 1)
    values = torch.randn(3, 2, length, 5, dtype=torch.float64)
    state = torch.zeros(3, 2, 4, 5, 2, dtype=torch.float64)
    outputs = []
    for value in values.unbind(2):
        out, state = matrix.step(value, state)
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 2), matrix.to_dense() @ values)
    torch.testing.assert_close(matrix.final_state(values), state)


def test_one_set_of_poles_serves_many_heads() -> None:
    matrix = DecayingToeplitz.example((9,), 1, 1)
    shared = DecayingToeplitz(matrix.log_poles, torch.randn(1, 3, 4, 2, dtype=torch.float64), 9)
    values = torch.randn(2, 3, 9, 2, dtype=torch.float64)
    assert shared.shape == (1, 3, 9, 9)
    torch.testing.assert_close(shared._matmul(values), shared.to_dense() @ values)
