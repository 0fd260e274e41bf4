"""Token embedding of a multivariate series: a convolution of width 3 that wraps round, so it already mixes time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat
from matmix.matrices.circulant import Circulant
from matmix.matrices.dense import Dense
from matmix.mixers.base import Projected, merge_heads
from matmix.mixers.maps import TokenMap


class CircularConv(TokenMap):
    """``y[l] = sum_t W_t x[(l + t - 1) mod L]``, t = 0, 1, 2: steps (B, L, C) to steps (B, L, D).

    Its matrix is a row of three circulant blocks, ``[n_0 S, n_1 I, n_2 S^T]`` with S the shift by one step, over the
    three value streams ``W_t x / n_t``; ``n_t`` is the Frobenius norm of ``W_t`` and says how much of an embedded step
    comes from the step before, the step itself and the one after.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.dim = dim
        self.conv = nn.Conv1d(dim, out, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="leaky_relu")

    def project(self, x: Tensor) -> Projected:
        weight = self.conv.weight.movedim(-1, 0)  # (3, D, C)
        size = torch.linalg.vector_norm(weight, dim=(1, 2)).clamp(min=torch.finfo(weight.dtype).tiny)
        values = torch.cat([F.linear(x, w / n) for w, n in zip(weight, size, strict=True)], 1)
        return Projected(
            ColumnCat(tuple(_shift(1 - t, n, x.shape[1]) for t, n in enumerate(size))), values.unsqueeze(1)
        )

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        if x.shape[1] == 1:  # PyTorch wraps no further than the length
            return self.conv(x.mT.expand(-1, -1, 2)).mT[:, None, :1], None
        return self.conv(x.mT).mT.unsqueeze(1), None

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return merge_heads(mixed)


def _shift(lag: int, factor: Tensor, length: int) -> Circulant | Dense:
    """``factor`` on the circulant diagonal of a lag, (1, 1, L, L)."""
    at = torch.arange(length, device=factor.device) == lag % length
    return Circulant.from_kernel(torch.where(at, factor, 0)[None, None], (length,))
