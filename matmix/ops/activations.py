"""Activations that spare a pass over memory where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.private import in_jit_trace, modes, transformed


def looked_on(*tensors: Tensor) -> bool:
    """Whether a compiler traces, or autograd keeps what becomes of these tensors: then nothing is written in place."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def plain_numbers(*tensors: Tensor) -> bool:
    """Whether tensors are ``plain_tensors`` of float32."""
    return plain_tensors(*tensors) and all(t.dtype == torch.float32 for t in tensors)


def plain_tensors(*tensors: Tensor) -> bool:
    """Whether these are nothing but tensors on the CPU, at the outermost level: no compiler, tracer, dispatch mode,
    transform or autocast.
    """
    return (
        untransformed()
        and all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not modes()
    )


def untransformed() -> bool:
    """Whether no compiler, tracer or transform of torch.func looks on, only autograd perhaps.

    Then a function may have a gradient of its own in the form that torch.func cannot transform: it is called in a
    third of the time.
    """
    return not torch.compiler.is_compiling() and not transformed() and not in_jit_trace()


def silu(hidden: Tensor) -> Tensor:
    """SiLU of hidden units that nobody else needs: in place unless autograd or a compiler looks on."""
    return F.silu(hidden, inplace=not looked_on(hidden))


def gelu(hidden: Tensor) -> Tensor:
    """GELU of hidden units that nobody else needs: in place unless autograd or a compiler looks on."""
    return F.gelu(hidden) if looked_on(hidden) else torch.ops.aten.gelu_(hidden)
