"""Perceptrons in groups: ModernTCN's two, one over the width of every series, one over the series of every channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product, Sum
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class GroupedPerceptron(nn.Module):
    """``W2[g] gelu(W1[g] x[g] + b1[g]) + b2[g]`` of (..., G, I), dropout in front of the activation.

    Args:
        groups: G.
        width: I.
        mlp_ratio: hidden units over I.
        dropout: of hidden units.
    """

    def __init__(self, groups: int, width: int, *, mlp_ratio: int = 1, dropout: float = 0.0) -> None:
        super().__init__()

        def draw(fan_in: int, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

        hidden = width * mlp_ratio
        self.weight1, self.bias1 = draw(width, groups, hidden, width), draw(width, groups, hidden)
        self.weight2, self.bias2 = draw(hidden, groups, width, hidden), draw(hidden, groups, width)
        self.dropout = nn.Dropout(dropout)

    def hidden(self, x: Tensor) -> Tensor:
        """(G, R, I) to (G, R, hidden), in front of dropout and activation."""
        return torch.baddbmm(self.bias1.unsqueeze(1), x, self.weight1.mT)

    def forward(self, x: Tensor) -> Tensor:
        """(..., G, I) to (..., G, I)."""
        rows = x.flatten(0, -3).transpose(0, 1)
        hidden = F.gelu(self.dropout(self.hidden(rows)))
        out = torch.baddbmm(self.bias2.unsqueeze(1), hidden, self.weight2.mT)
        return out.transpose(0, 1).reshape(x.shape)


class SeriesPerceptron(TokenMap):
    """That perceptron between C series, one for each of D channels: (B, N, C, D) to (B, N, C, D).

    Since ``gelu(z) = z Phi(z)``, it is the matrix ``W2 diag(Phi(z)) [W1, b1] + [0, b2]``, (B * N, D, C, C + 1): one a
    step and channel; its last column takes a constant 1.

    Args: see `GroupedPerceptron`.
    """

    def __init__(self, channels: int, dim: int, *, mlp_ratio: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = GroupedPerceptron(dim, channels, mlp_ratio=mlp_ratio, dropout=dropout)

    def project(self, x: Tensor) -> Projected:
        mlp, rows = self.mlp, x.flatten(0, 1).mT  # (R, D, C)
        values = torch.cat((rows, rows.new_ones(1, 1, 1).expand(*rows.shape[:2], 1)), 2).unsqueeze(-1)
        hidden = mlp.hidden(rows.transpose(0, 1))
        kept = mlp.dropout(torch.ones_like(hidden))
        share = kept * 0.5 * (1 + torch.erf(kept * hidden * 0.5**0.5))
        first = ColumnCat((Dense(mlp.weight1[None]), Dense(mlp.bias1[None, ..., None])))
        offset = ColumnCat((Diagonal(torch.zeros_like(rows[:1])), Dense(mlp.bias2[None, ..., None])))
        matrix = Sum((Product((Dense(mlp.weight2[None]), Diagonal(share.transpose(0, 1)), first)), offset))
        return Projected(matrix, values, x.shape)

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.mlp(x.mT).flatten(0, 1).unsqueeze(-1), x.shape

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(-1).mT.reshape(rest)
