"""Signals multiplied by the SiLU of a gate: on a GPU by one kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from matmix.ops.gpu import in_triton
from matmix.ops.private import in_forward_mode

MOST = 8192  # channels that are normalised together: what a program keeps in registers


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """``x silu(gate)``."""
    if by_kernel(x, gate):
        from matmix.ops import gated_triton

        return gated_triton.gated(x, gate)
    return x * F.silu(gate)


def by_kernel(x: Tensor, gate: Tensor, weight: Tensor | None = None, groups: int = 1) -> bool:
    """Whether ``gated_triton`` takes these; what PyTorch would refuse or broadcast, and forward mode, is PyTorch's."""
    return (
        in_triton(x, gate, weight)
        and x.shape == gate.shape
        and x.device == gate.device
        and not in_forward_mode()
        and (
            weight is None
            or (x.device == weight.device and weight.shape == x.shape[-1:] and x.shape[-1] <= MOST * groups)
        )
    )
