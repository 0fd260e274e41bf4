"""A linear layer and the activation behind it, in one kernel where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.activations import plain_numbers
from matmix.ops.layers import StarReLU
from matmix.ops.plain import is_plain

# oneDNN's product applies the activation while the result is in cache. Calling it costs some 10 us, which many
# multiplications must make up for. From narrow inputs it is the faster product by a tenth; from wide ones PyTorch's own
# is as fast, and its passes for GELU and SiLU are several times as fast as oneDNN's (measured on AVX2, torch 2.14).
_FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
WORTH = 1 << 22
_NARROW = 128  # inputs, at most
_NAMES: dict[type[nn.Module], tuple[str, str]] = {
    nn.Identity: ("none", ""),
    nn.ReLU: ("relu", ""),
    StarReLU: ("relu", ""),
    nn.SiLU: ("swish", ""),
}
_IDENTITY = nn.Identity()


def runs_only(x: Tensor, size: int = 0) -> bool:
    """Whether a tensor is plain float32 numbers on the CPU and nobody looks on: no autograd, compiler, mode, transform.

    What may then be done to it, kernels without derivatives or work in place, nobody can tell from the result. Where
    that pays for ``size`` numbers or more it is soon answered for fewer: all questions take as long as a small kernel.
    """
    return (
        type(x) is Tensor  # a tracer's stand-in may have no number of them
        and not torch.compiler.is_compiling()
        and x.numel() >= size
        and plain_numbers(x)
        and not torch.is_grad_enabled()
    )


def linear(layer: nn.Module, x: Tensor, act: nn.Module = _IDENTITY) -> Tensor:
    """``act(layer(x))``, for a linear layer ``(..., I)`` to ``(..., O)`` and an activation.

    A layer or activation that is more than its class and its weights (``is_plain``) is called, as are activations
    other than those of ``torch.nn`` and ours.
    """
    # Of a wide layer without activation there is nothing to fuse, and to ask takes 3 % of an attention of 197 tokens.
    gains = act is not _IDENTITY or getattr(layer, "in_features", 0) <= _NARROW
    if gains and _pays(x, getattr(layer, "out_features", 0)) and is_plain(layer, nn.Linear):
        fused = _fused(x, layer.weight, layer.bias, act)
        if fused is not None:
            return fused
    out = layer(x)
    return out if act is _IDENTITY else act(out)  # a module that is no part of the model would stop torch.fx


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, act: nn.Module = _IDENTITY) -> Tensor:
    """``act(weight x + bias)`` on the last axis, for a weight ``(O, I)`` that is made on the spot."""
    out = _fused(x, weight, bias, act) if _pays(x, len(weight)) else None
    return act(F.linear(x, weight, bias)) if out is None else out


def _pays(x: Tensor, outputs: int) -> bool:
    """Whether nobody looks on, and the product is large enough for a kernel of its own."""
    return outputs > 0 and runs_only(x, -(-WORTH // outputs))


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, act: nn.Module) -> Tensor | None:
    """The result in as few passes as there can be; None where the weight or the activation is not made for it."""
    if _FUSED is None or weight.dtype != torch.float32 or weight.device != x.device or not is_plain(act, type(act)):
        return None
    name, algorithm = _NAMES.get(type(act), ("", ""))
    if type(act) is nn.GELU and act.approximate in ("none", "tanh"):
        name, algorithm = "gelu", act.approximate
    if not name:
        return None
    if weight.shape[1] <= _NARROW:
        out = _FUSED(x, weight, bias, name, [], algorithm)
    else:
        out = F.linear(x, weight, bias)
        if name == "relu":
            out.relu_()
        elif name == "swish":
            F.silu(out, inplace=True)
        elif name == "gelu":
            torch.ops.aten.gelu_(out, approximate=algorithm)
    if isinstance(act, StarReLU):
        torch.addcmul(act.bias, out, out, value=act.scale.item(), out=out)
    return out
