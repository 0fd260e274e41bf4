"""Token MLP: a two-layer perceptron over the tokens of every channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.gate import Gate
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.ops import interpolate
from matmix.ops.activations import gelu, looked_on
from matmix.ops.effective import affine_of
from matmix.ops.plain import is_plain


class _Act(NamedTuple):
    kept: Callable[[Tensor], Tensor]
    spent: Callable[[Tensor], Tensor]  # of hidden units that nobody else needs


_ACTS = {"gelu": _Act(F.gelu, gelu), "relu": _Act(F.relu, F.relu)}
WIDE = 128  # channels from which a product of its own for each sample is fast


@register(
    "mlp",
    matrix="W2 diag(Phi(W1 x)) W1 per channel",
    cost="O(L D hidden)",
    source="okojoalg/raft-mlp",
    paper="2105.01601, equation 1",
    smallest={"hidden": 6},
)
class TokenMLP(Mixer):
    """``y = W2 act(W1 x + b1) + b2`` over the tokens of every channel (MLP-Mixer's token mixing; TSMixer's with ReLU).

    Since ``gelu(z) = z Phi(z)`` with the normal distribution function Phi, the layer is exactly the product with
    ``W2 diag(Phi(z)) [W1, b1] + [0, b2]``, one matrix a channel and sample; its last column takes a constant 1 that is
    appended to the tokens. With ReLU the gate is 1 where z > 0, else 0.

    Args:
        hidden: width of the hidden layer (MLP-Mixer S: 256, B: 384, L: 512); 0 for one layer alone,
            ``y = act(W1 x + b1)`` (TSMixer's paper), whose gates stand in front.
        act: the activation, ``"gelu"`` or ``"relu"``.
    """

    traits = Traits(data_dependent=True, length="fixed", mask="content")

    def __init__(
        self, dim: int, grid: Grid | None = None, *, hidden: int = 256, act: Literal["gelu", "relu"] = "gelu"
    ) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        self.act = act
        length = math.prod(self.grid)
        self.fc1 = nn.Linear(length, hidden or length)
        self.fc2 = nn.Linear(hidden, length) if hidden else None

    def project(self, x: Tensor, context: Context) -> Projected:
        values = torch.cat((x, x.new_ones(1, 1, 1).expand(x.shape[0], 1, self.dim)), 1).mT.unsqueeze(-1)
        weight1, bias1 = affine_of(self.fc1, x.shape[1])
        if self.fc2 is None:
            return Projected(_layer(x, weight1, bias1, self.act), values)
        weight2, bias2 = affine_of(self.fc2, len(bias1))
        return Projected(_perceptron(x, weight1, bias1, weight2, bias2, self.act), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        # The matrix would need the hidden units for its gates, which are most of the product, and then again.
        return self._mix(x).unsqueeze(-1), None

    def _mix(self, x: Tensor) -> Tensor:
        """The perceptron itself, tokens to ``(B, D, L)``."""
        first, second, act = self.fc1, self.fc2, _ACTS[self.act]
        plain = is_plain(first, nn.Linear)
        if second is None:
            return act.spent(first(x.mT)) if plain else act.kept(first(x.mT))
        if not plain or x.shape[2] < WIDE or looked_on(x, first.weight) or not is_plain(second, nn.Linear):
            hidden = first(x.mT)
            return second(act.spent(hidden) if plain else act.kept(hidden))
        # One product a sample reads the tokens as they lie; its gradient would be a sum over samples.
        hidden = torch.baddbmm(first.bias.unsqueeze(1), first.weight.expand(x.shape[0], -1, -1), x)
        return torch.baddbmm(second.bias.unsqueeze(1), second.weight.expand(x.shape[0], -1, -1), act.spent(hidden)).mT

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(-1).mT

    def resize_(self, grid: Grid) -> Self:
        """Interpolate the weights over the tokens; what a hidden unit sums up over a constant stays what it was."""
        old = self.grid
        super().resize_(grid)
        assert old is not None and self.grid is not None
        length = math.prod(self.grid)
        with torch.no_grad():
            reading = interpolate.positions(self.fc1.weight, 1, old, self.grid) * (math.prod(old) / length)
            last = self.fc1 if self.fc2 is None else self.fc2
            writing = interpolate.positions(reading if last is self.fc1 else last.weight, 0, old, self.grid)
            offset = interpolate.positions(last.bias, 0, old, self.grid)
        self.fc1.weight = nn.Parameter(reading, self.fc1.weight.requires_grad)
        last.weight = nn.Parameter(writing, last.weight.requires_grad)
        last.bias = nn.Parameter(offset, last.bias.requires_grad)
        self.fc1.in_features = last.out_features = length
        return self

    # raft-mlp's token MLP is Sequential(Linear, GELU, Dropout, Linear, Dropout).
    published: ClassVar[dict[str, Any]] = {
        "okojoalg/raft-mlp": lambda module, state: {
            name.replace("fn.0.", "fc1.").replace("fn.3.", "fc2."): value for name, value in state.items()
        }
    }


def _layer(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Matrix:
    """``diag(gate(z)) [W, b]`` for tokens ``(B, L, D)``, a matrix a channel."""
    first = Dense(weight[None, None])
    gate = Gate(first, x.mT.unsqueeze(-1), bias.view(1, 1, -1), kind=act)
    return Product((gate, ColumnCat((first, Dense(bias.view(1, 1, -1, 1))))))


def _perceptron(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, act: str) -> Matrix:
    """``W2 diag(Phi(z)) [W1, b1] + [0, b2]`` for tokens ``(B, L, D)``, a matrix a channel."""
    first, second = Dense(weight1[None, None]), Dense(weight2[None, None])
    gate = Gate(first, x.mT.unsqueeze(-1), bias1.view(1, 1, -1), kind=act)
    hidden = ColumnCat((first, Dense(bias1.view(1, 1, -1, 1))))
    nothing = Diagonal(x.new_zeros(1, 1, 1).expand(-1, -1, x.shape[1]))
    offset = ColumnCat((nothing, Dense(bias2.view(1, 1, -1, 1))))
    return Sum((Product((second, gate, hidden)), offset))
