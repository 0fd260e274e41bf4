"""Structures of ``level="matrix"`` that are linear recurrences, in both directions or, where causal, in one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.general_quasiseparable import GeneralQuasiseparable
from matmix.matrices.general_semiseparable import GeneralSemiseparable
from matmix.matrices.quasiseparable import Quasiseparable
from matmix.matrices.softmax import Softmax
from matmix.mixers.hydra import triangles
from matmix.ops.state_space import add_dynamics
from matmix.surgery.structures import MatrixOf, Size, structure


class States(nn.Module):
    """Learned generators of a causal matrix of some order: what is written, kept and read at every token.

    Kept at first is a share of each state that lasts for 1 to L tokens, so that the matrix begins as a sum of decays.
    """

    def __init__(self, heads: int, length: int, order: int) -> None:
        super().__init__()
        self.outputs = nn.Parameter(torch.randn(heads, length, order) * order**-0.5)
        self.inputs = nn.Parameter(torch.randn(heads, length, order) * length**-0.5)
        lasts = torch.logspace(0, 1, order, base=max(length, 2))
        self.transitions = nn.Parameter(torch.diag((-1 / lasts).exp()).repeat(heads, length, 1, 1))

    def forward(self) -> GeneralSemiseparable:
        return GeneralSemiseparable(self.outputs[None], self.inputs[None], self.transitions[None])

    def set_to(self, matrix: GeneralSemiseparable) -> None:
        """Take the generators of a matrix of one sample."""
        for name in ("outputs", "inputs", "transitions"):
            getattr(self, name).copy_(getattr(matrix, name)[0])


@structure("quasiseparable")
class BothSides(MatrixOf):
    """Hydra's matrix with queries to read and keys to write, one learned step and decay a head, and a learned diagonal.

    With ``causal`` only its lower triangle, the matrix of SSD. Queries are divided by ``E``, so that the scores of
    independent unit vectors are of the size of a mean.

    Args:
        order: a learned matrix of so many states in each direction instead, one for all data and of one length, with
            transitions of its own at every token; of the queries and keys nothing is used.
    """

    can_be_causal = True
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(self, size: Size, causal: bool = False, *, order: int | None = None) -> None:
        super().__init__(size, causal)
        self.order = order
        if order is None:
            add_dynamics(self, size.heads)
            return
        assert size.length is not None
        most = (size.length + 1) // 2 if causal else max(1, size.length // 2)
        if type(order) is not int or not 1 <= order <= most:
            raise ValueError(f"order must be a whole number from 1 to {most} at {size.length} tokens, got {order!r}")
        self.fixed = True  # type: ignore[misc]
        self.lower = States(size.heads, size.length, order)
        if not causal:
            self.upper = States(size.heads, size.length, order)
            self.skip = nn.Parameter(torch.ones(size.heads, size.length))

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        if self.order is not None:
            return self.lower() if self.causal else GeneralQuasiseparable(self.lower(), self.upper(), self.skip[None])
        batch, heads, length, width = old.query.shape
        read = old.query / width
        raw = read.new_zeros(1, length, 2 * heads).expand(batch, -1, -1)
        lower, upper = triangles(self, (read, old.key), (read, old.key), raw, old.mask)
        diagonal = self.D.to(values.dtype)[None, :, None].expand(1, -1, length)
        if self.causal:
            return Sum((lower, Diagonal(diagonal)))
        return Quasiseparable(lower, upper, diagonal)
