"""Parts of FFNet for time series, arXiv 2406.02021; its token mixer is ``ffnified(variates=...)``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import ColumnCat, Product, Sum
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap
from matmix.ops.layers import CrossMlp
from sequence.layers.norms import TokenBatchNorm, normed
from sequence.series.layers.large_kernel import LargeKernel


class JointPerceptron(TokenMap):
    """FFNet's perceptron over variates and width, tokens ``(B, L, variates, width)`` to the same.

    Since ``gelu(z) = z Phi(z)``, it is the matrix ``W2 diag(Phi(z)) [W1, b1] + [0, b2]`` of each step, over the entries
    of a step: ``(B * L, 1, width * variates, width * variates + 1)``, the width the slow axis. W1 is zero between
    variates, W2 between entries of the width. The last column takes a constant 1.

    Args:
        variates, width: series side by side, and channels of each.
        mlp_ratio: hidden units for every entry.
        dropout: of hidden units.
    """

    def __init__(self, variates: int, width: int, *, mlp_ratio: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = CrossMlp(width, variates, mlp_ratio, dropout=dropout)

    def project(self, x: Tensor) -> Projected:
        mlp, rows = self.mlp, x.mT.flatten(0, 1)  # (R, P, Q): width and variates
        width, variates, ratio = mlp.first, mlp.second, mlp.mlp_ratio
        inner = mlp.hidden(x.mT)
        # What is left out is scaled by 0 and the rest by 1 / (1 - share), in front of GELU and so of its gate too.
        kept = mlp.dropout(torch.ones_like(inner)).flatten(0, 1).mT
        hidden = inner.flatten(0, 1).mT  # (R, h, Q), h = (p, e)
        share = kept * 0.5 * (1 + torch.erf(kept * hidden * 0.5**0.5))
        apart = torch.eye(variates, dtype=x.dtype, device=x.device)
        first = torch.einsum("qhp,qv->hqpv", mlp.weight1, apart).reshape(width * ratio * variates, -1)
        inner = mlp.weight2.unflatten(-1, (ratio, variates))  # (P, K, e, Q)
        apart = torch.eye(width, dtype=x.dtype, device=x.device)
        second = torch.einsum("pkeq,po->pkoeq", inner, apart).reshape(width * variates, -1)
        reading = ColumnCat((Dense(first[None, None]), Dense(mlp.bias1.mT.reshape(1, 1, -1, 1))))
        product = Product((Dense(second[None, None]), Diagonal(share.flatten(1).unsqueeze(1)), reading))
        nothing = Diagonal(x.new_zeros(1, 1, width * variates))
        offset = ColumnCat((nothing, Dense(mlp.bias2.reshape(1, 1, -1, 1))))
        values = torch.cat((rows.flatten(1), rows.new_ones(1, 1).expand(len(rows), 1)), 1)
        return Projected(Sum((product, offset)), values[:, None, :, None], x.shape)

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.mlp(x.mT).flatten(0, 1).flatten(1)[:, None, :, None], x.shape

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.reshape(*rest[:2], rest[3], rest[2]).mT


class SeriesChannelMixer(nn.Module):
    """``x + mlp(norm(conv(x)))`` of tokens ``(B, L, variates * width)``, the variates the slow axis.

    A long depthwise convolution along time with a short branch, a batch norm over the width (common to the variates),
    and a perceptron that widens the width for every variate, then mixes the variates for every channel of the width.

    Args:
        variates: series side by side.
        width: channels of each.
        kernel, small: taps of the convolution and of its branch, odd.
        mlp_ratio: hidden units of the perceptron for every entry.
        dropout, out_dropout: of its hidden units, and of what it gives.
    """

    published: ClassVar[dict[str, Any]] = {"ysj9909/FFNet": lambda module, state: from_published(module, state)}

    def __init__(
        self,
        variates: int,
        width: int,
        *,
        kernel: int = 51,
        small: int = 5,
        mlp_ratio: int = 2,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.variates, self.width = variates, width
        self.conv = LargeKernel(variates * width, kernel=kernel, small=small)
        self.norm = TokenBatchNorm(width)
        self.mlp = JointPerceptron(variates, width, mlp_ratio=mlp_ratio, dropout=dropout)
        self.dropout = nn.Dropout(out_dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, L, variates * width)`` to the same; a mask is (B, L), True = a real token."""
        series = self.conv(x, mask=mask).unflatten(2, (self.variates, self.width))
        every = None if mask is None else mask.unsqueeze(-1).expand(-1, -1, self.variates)
        return x + self.dropout(self.mlp(normed(self.norm, series, every))).flatten(2)


def from_published(module: SeriesChannelMixer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of ysj9909/FFNet, where the perceptron is two grouped convolutions."""
    shapes = {f"mlp.mlp.{name}": value.shape for name, value in module.mlp.mlp.named_parameters()}
    branches = {"dw.lkb_origin.conv": "conv.conv.conv.c", "dw.small_conv.conv": "conv.conv.conv1.c"}
    branches |= {"dw.lkb_origin.bn": "conv.conv.conv.bn", "dw.small_conv.bn": "conv.conv.conv1.bn"}
    ours = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if part in ("ffnpw1", "ffnpw2"):
            name = f"mlp.mlp.{leaf}{part[-1]}"
            value = value.reshape(shapes[name]) if value.numel() == shapes[name].numel() else value
        ours[f"{branches[part]}.{leaf}" if part in branches else name] = value
    return ours
