"""Small layers that several mixers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StarReLU(nn.Module):
    """``scale * relu(x)^2 + bias`` with two learnable scalars (MetaFormer baselines, arXiv 2210.13452, StarReLU).

    ``scale`` and ``bias`` have the shape [1] and start at 1 and 0, as in the published code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.bias
