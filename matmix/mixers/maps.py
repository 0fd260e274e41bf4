"""TokenMap: what a mixer is where rows and columns are of two kinds: embeddings, heads, cross attention, pooling."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected
from matmix.ops.reparam import keeping_statistics


class TokenMap(nn.Module):
    """A matrix times values, like a mixer, without a mixer's promises: numbers of tokens and widths in and out differ.

    A subclass writes ``project`` and ``merge``; where there is a shorter way to the product, ``product`` beside them.
    ``matmix.surgery.find`` lists it (kind ``"map"``), and ``matmix.inspect.record`` notes its matrix. It is not to be
    replaced, since a mixer gives as many tokens as it gets; of cross attention the matrix is.
    """

    kind: ClassVar[str] = "map"  # or "cross_attention", called with tokens, a memory and its mask; a Softmax matrix
    dim: int = 0  # width of the tokens that are read, for tables of sites; 0: any
    matrix_dropout: float = 0.0  # in training, the chance of an entry of the matrix to be left out

    def project(self, *args: Any, **options: Any) -> Projected:
        """The arguments of a call to a matrix, its values and what ``merge`` needs besides the product.

        Without dropout of the matrix, which is ``matrix_dropout``.
        """
        raise NotImplementedError

    def product(self, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        """``matrix @ values`` of ``project``, and the rest; overridden where there is a shorter way."""
        matrix, values, rest = self.project(*args, **options)
        if self.training and self.matrix_dropout:
            matrix = Dense(F.dropout(matrix.to_dense(), self.matrix_dropout))
        return matrix.matmul(values), rest

    def merge(self, mixed: Tensor, rest: Any) -> Any:
        """The product ``(B, H, L_out, W)`` to what the module returns."""
        raise NotImplementedError

    def forward(self, *args: Any, **options: Any) -> Any:
        """``merge`` of ``product``."""
        return self.merge(*self.product(*args, **options))

    def matrix(self, *args: Any, **options: Any) -> Matrix:
        """The matrix that a call with these arguments multiplies by."""
        with keeping_statistics(self):
            return self.project(*args, **options).matrix
