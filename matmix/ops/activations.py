"""Activations that spare a pass over memory where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gelu(hidden: Tensor) -> Tensor:
    """GELU of hidden units that nobody else needs: in place unless autograd or a compiler looks on."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and hidden.requires_grad):
        return F.gelu(hidden)
    return torch.ops.aten.gelu_(hidden)
