"""Norms of tokens (..., D). Padding has no part in what they measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from matmix.ops.precision import working_dtype

Norm = Literal["layer", "rms", "batch", "scale"]


class ScaleNorm(nn.Module):
    """``scale * x / rms(x)`` with one learned number, as Mega has it (arXiv 2209.10655, the norm of its text tasks)."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(working_dtype(x))
        root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.scale * root * wide).to(x.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class TokenBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over all tokens of a batch, with its arguments, its running averages and their names.

    With a mask the mean and the variance are those of the real tokens alone, so a batch that is padded further moves
    neither its outputs nor the averages.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(..., D)`` and a mask ``(...)``, True = a real token, to ``(..., D)``."""
        if mask is None or not self.training:
            return super().forward(x.flatten(0, -2)).view_as(x)
        real = mask.unsqueeze(-1)
        wide = x.to(working_dtype(x)).masked_fill(~real, 0)
        axes = tuple(range(x.dim() - 1))
        count = mask.sum().clamp(min=1)
        mean = wide.sum(axes) / count
        centred = (wide - mean).masked_fill(~real, 0)
        variance = centred.square().sum(axes) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        out = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """The running averages, as PyTorch keeps them: of the unbiased variance; momentum None is the plain mean."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "batch": TokenBatchNorm,
    "scale": lambda dim: ScaleNorm(),
}
assert tuple(NORMS) == get_args(Norm)


def make_norm(name: str, dim: int) -> nn.Module:
    """A norm by its name, for ``dim`` channels."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    return NORMS[name](dim)


def normed(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A norm on tokens; one that looks at several tokens at once is told which are real."""
    result: Tensor = norm(x, mask) if isinstance(norm, TokenBatchNorm) else norm(x)
    return result
