"""What matrices of two triangles around a free diagonal have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from matmix.matrices.base import Matrix, Shape
from matmix.matrices.legend import axes
from matmix.ops.sizes import joint_batch


class TwoTriangles(Matrix):
    """Two semiseparable triangles, each one token late, around a diagonal. Subclasses say how ``upper`` is stored."""

    lower: Any
    upper: Any
    skip: Tensor = axes("B|1 H L")

    properties: ClassVar = frozenset({"quasiseparable"})

    @property
    def shape(self) -> Shape:
        _, heads, length = self.skip.shape
        return (joint_batch((self.skip, *self.lower.tensors(), *self.upper.tensors())), heads, length, length)

    @property
    def order(self) -> int:
        """N: no block strictly on one side of the diagonal has a higher rank."""
        return max(self.lower.order, self.upper.order)

    def diagonal(self) -> Tensor:
        return self.skip
