"""The triangular inverse of the delta rule, beyond the laws: chunks, and that it is an inverse."""

import pytest
import torch

from matmix.matrices import UnitLowerInverse


@pytest.mark.parametrize("chunk", [1, 5, 32, 100])
def test_is_an_inverse_whatever_the_chunk(chunk: int) -> None:
    torch.manual_seed(0)
    left, right = torch.nn.functional.normalize(torch.randn(2, 2, 3, 77, 4, dtype=torch.float64), dim=-1)
    values = torch.randn(2, 3, 77, 2, dtype=torch.float64)
    triangle = (left @ right.mT).tril(-1) + torch.eye(77, dtype=torch.float64)
    matrix = UnitLowerInverse(left, right, chunk)
    torch.testing.assert_close(triangle @ matrix.matmul(values), values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(triangle.mT @ matrix.rmatmul(values), values, rtol=1e-9, atol=1e-9)
