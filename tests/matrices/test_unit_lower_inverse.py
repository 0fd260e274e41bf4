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


@pytest.mark.parametrize("chunk", [1, 5, 32, 100])
def test_segments_have_no_say_in_each_other(chunk: int) -> None:
    torch.manual_seed(0)
    left, right = torch.nn.functional.normalize(torch.randn(2, 2, 3, 77, 4, dtype=torch.float64), dim=-1)
    values = torch.randn(2, 3, 77, 2, dtype=torch.float64)
    cuts = torch.zeros(2, 77, dtype=torch.int64)
    cuts[0, [4, 5, 6, 31, 60]] = 1
    cuts[1, [32, 70]] = 1
    matrix = UnitLowerInverse(left, right, chunk, cuts.cumsum(1))
    dense = matrix.to_dense()
    torch.testing.assert_close(matrix.matmul(values), dense @ values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(matrix.rmatmul(values), dense.mT @ values, rtol=1e-9, atol=1e-9)
    alone = UnitLowerInverse(left[1:, :, 32:70], right[1:, :, 32:70], chunk)
    torch.testing.assert_close(dense[1:, :, 32:70, 32:70], alone.to_dense())
