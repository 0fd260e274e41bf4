"""Matrices that people make are held to the legend of their class: no product of tensors that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from matmix.matrices import DiagonalSemiseparable, Laplace, Matrix, Toeplitz
from matmix.testing.cases import MatrixCase
from tests.laws import matrix_classes

GRIDS = ((5,), (3, 4), (1,))


def tensors(matrix: Matrix) -> list[str]:
    stated = [field.name for field in dataclasses.fields(matrix) if "axes" in field.metadata]
    return [name for name in stated if isinstance(getattr(matrix, name), Tensor)]


@pytest.mark.parametrize("cls", matrix_classes(), ids=lambda cls: cls.__name__)
def test_a_tensor_of_another_shape_or_kind_is_refused_or_is_another_matrix(cls: type[Matrix]) -> None:
    for grid in GRIDS:
        matrix = MatrixCase(cls, grid).make()
        assert matrix.check() is matrix
        for name in tensors(matrix):
            tensor: Tensor = getattr(matrix, name)
            for axis in range(tensor.dim()):
                size = [1 if place == axis else n for place, n in enumerate(tensor.shape)]
                longer = torch.cat((tensor, tensor.new_zeros(size)), axis)
                other = dataclasses.replace(matrix, **{name: longer})
                try:
                    other.check()
                except ValueError as error:
                    assert str(error).startswith(cls.__name__), error
                else:
                    assert other.to_dense().shape == other.shape
                    values = torch.randn(max(2, other.shape[0]), other.shape[1], other.shape[3], 2).to(other.dtype)
                    torch.testing.assert_close(other @ values, (other.to_dense() @ values).to(values.dtype))
            for wrong in (tensor.bool() if tensor.dtype != torch.bool else tensor.float(), tensor.unsqueeze(0), None):
                if wrong is None and any(f.name == name and f.default is None for f in dataclasses.fields(matrix)):
                    continue
                with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} must be "):
                    dataclasses.replace(matrix, **{name: wrong}).check()


def test_what_people_multiply_is_checked() -> None:
    """Each of these had a product that is not the matrix's: of five axes, of another length, of its own dense form."""
    query, key = torch.randn(1, 1, 4, 2), torch.randn(1, 2, 4, 2)
    with pytest.raises(ValueError, match=r"Laplace: key must be .* got \(1, 2, 4, 2\): H is 1 elsewhere"):
        Laplace(query, key) @ torch.randn(1, 2, 4, 3)
    with pytest.raises(ValueError, match=r"Toeplitz: taps must be .* got \(1, 2, 8\): 8 is no 2L-1"):
        Toeplitz(torch.randn(1, 2, 8)) @ torch.randn(1, 2, 4, 3)
    outputs, inputs, decay = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 6, 2), -torch.rand(1, 2, 4, 2)
    with pytest.raises(ValueError, match=r"DiagonalSemiseparable: inputs must be .*: L is 4 elsewhere"):
        DiagonalSemiseparable(outputs, inputs, decay) @ torch.randn(1, 2, 4, 3)
    with pytest.raises(ValueError, match="values of floating point"):
        Toeplitz(torch.randn(1, 2, 7)) @ torch.ones(1, 2, 4, 3, dtype=torch.int64)
