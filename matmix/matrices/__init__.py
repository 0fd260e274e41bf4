"""Structured matrices, one class a file, and the algebra over them."""

from matmix.matrices.algebra import ColumnCat, HeadCat, Kron, Masked, Product, Scale, Sum, Transpose
from matmix.matrices.base import Matrix, Shape, all_classes, static
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.identity import Identity
from matmix.matrices.permutation import Permutation

__all__ = [
    "ColumnCat",
    "Dense",
    "Diagonal",
    "HeadCat",
    "Identity",
    "Kron",
    "Masked",
    "Matrix",
    "Permutation",
    "Product",
    "Scale",
    "Shape",
    "Sum",
    "Transpose",
    "all_classes",
    "static",
]
