"""A linear layer and the activation behind it, in one kernel where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.ops.layers import StarReLU

# oneDNN's product applies the activation while the result is in cache; on CPU it is also the faster product (by 1.1 to
# 1.4 times on the layers of a CAFormer). Calling it costs some 10 us, which many multiplications must make up for.
_FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_WORTH = 1 << 22
_NAMES: dict[type[nn.Module], tuple[str, str]] = {
    nn.Identity: ("none", ""),
    nn.ReLU: ("relu", ""),
    StarReLU: ("relu", ""),
    nn.SiLU: ("swish", ""),
}
_IDENTITY = nn.Identity()


def runs_only(x: Tensor) -> bool:
    """Whether a tensor is plain float32 numbers on the CPU and nobody looks on: no autograd, compiler, mode, transform.

    What may then be done to it, kernels without derivatives or work in place, nobody can tell from the result.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def linear(layer: nn.Module, x: Tensor, act: nn.Module = _IDENTITY) -> Tensor:
    """``act(layer(x))``, for a linear layer ``(..., I)`` to ``(..., O)`` and an activation.

    Layers with hooks, and classes other than ``nn.Linear`` and the activations of ``torch.nn`` and ours, are called
    as modules.
    """
    if (
        runs_only(x)
        and _FUSED is not None
        and type(layer) is nn.Linear
        and x.numel() * layer.out_features >= _WORTH
        and layer.weight.dtype == torch.float32
        and not (layer._forward_hooks or layer._forward_pre_hooks or act._forward_hooks or act._forward_pre_hooks)
    ):
        name, algorithm = _NAMES.get(type(act), ("", ""))
        if isinstance(act, nn.GELU) and act.approximate in ("none", "tanh"):
            name, algorithm = "gelu", act.approximate
        if name:
            out = _FUSED(x, layer.weight, layer.bias, name, [], algorithm)
            if isinstance(act, StarReLU):
                torch.addcmul(act.bias, out, out, value=act.scale.item(), out=out)
            return out
    return act(layer(x))
