"""Token MLP: a two-layer perceptron over the tokens of every channel."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product
from matmix.matrices.dense import Dense
from matmix.matrices.gate import Gate
from matmix.matrices.known import Known
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.ops import interpolate
from matmix.ops.activations import gelu


@register(
    "mlp",
    matrix="W2 diag(Phi(W1 x)) W1 per channel",
    cost="O(L D hidden)",
    source="okojoalg/raft-mlp",
    paper="2105.01601, equation 1",
    smallest={"hidden": 6},
)
class TokenMLP(Mixer):
    """``y = W2 gelu(W1 x + b1) + b2`` over the tokens of every channel (MLP-Mixer's token mixing).

    Since ``gelu(z) = z Phi(z)`` with the normal distribution function Phi, the layer is exactly the product with
    ``W2 diag(Phi(z)) [W1, b1]``, one matrix a channel and sample; its last column takes a constant 1 that is appended
    to the tokens, and ``merge`` adds ``b2``.

    Args:
        hidden: width of the hidden layer (MLP-Mixer S: 256, B: 384, L: 512).
    """

    traits = Traits(data_dependent=True, length="fixed", mask="content")

    def __init__(self, dim: int, grid: Grid | None = None, *, hidden: int = 256) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        if not isinstance(hidden, int) or hidden < 1:
            raise ValueError(f"hidden must be a positive integer, got {hidden!r}")
        length = math.prod(self.grid)
        self.fc1 = nn.Linear(length, hidden)
        self.fc2 = nn.Linear(hidden, length)

    def project(self, x: Tensor, context: Context) -> Projected:
        x = drop_padding(x, context.mask)
        values = F.pad(x, (0, 0, 0, 1), value=1.0).mT.unsqueeze(-1)  # (B, D, L + 1, 1)
        assert self.fc1.bias is not None
        first = ColumnCat((Dense(self.fc1.weight[None, None]), Dense(self.fc1.bias.view(1, 1, -1, 1))))
        # The gates need the hidden units, which are most of the product: it is made here, once.
        mixed = F.linear(gelu(self.fc1(x.mT)), self.fc2.weight)
        matrix = Product((Dense(self.fc2.weight[None, None]), Gate(first, values), first))
        return Projected(Known(matrix, values, mixed.unsqueeze(-1)), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        assert self.fc2.bias is not None
        return mixed.squeeze(-1).mT + self.fc2.bias.unsqueeze(1)

    def resize_(self, grid: Grid) -> Self:
        """Interpolate the weights over the tokens; what a hidden unit sums up over a constant stays what it was."""
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        length = math.prod(self.grid)
        with torch.no_grad():
            reading = interpolate.positions(self.fc1.weight, 1, old, self.grid) * (math.prod(old) / length)
            writing = interpolate.positions(self.fc2.weight, 0, old, self.grid)
            offset = interpolate.positions(self.fc2.bias, 0, old, self.grid)
        self.fc1.weight = nn.Parameter(reading, self.fc1.weight.requires_grad)
        self.fc2.weight = nn.Parameter(writing, self.fc2.weight.requires_grad)
        self.fc2.bias = nn.Parameter(offset, self.fc2.bias.requires_grad)
        self.fc1.in_features = self.fc2.out_features = length
        return self

    # raft-mlp's token MLP is Sequential(Linear, GELU, Dropout, Linear, Dropout).
    published: ClassVar[dict[str, Any]] = {
        "okojoalg/raft-mlp": lambda module, state: {
            name.replace("fn.0.", "fc1.").replace("fn.3.", "fc2."): value for name, value in state.items()
        }
    }
