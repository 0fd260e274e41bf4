"""Norms of tokens (..., D). Padding has no part in what they measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn

from matmix.mixers.base import drop_padding
from matmix.ops.precision import working_dtype
from matmix.ops.reparam import BatchNorm

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


class TokenBatchNorm(BatchNorm):
    """Batch norm over all tokens of a batch, ``nn.BatchNorm1d`` in its arguments, running averages and names.

    With a mask the mean and the variance are those of the real tokens alone, so a batch that is padded further moves
    neither its outputs nor the averages. In training on several processes they are those of all, as
    ``nn.SyncBatchNorm``, which takes neither a mask nor a CPU, has them: two processes train as one.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(..., D)`` and a mask ``(...)``, True = a real token, to ``(..., D)``."""
        rows = drop_padding(x, mask).flatten(0, -2)
        real = None if mask is None else mask.reshape(-1, 1)
        if self.training and distributed.is_available() and distributed.is_initialized():
            return self._joined(rows, real).view_as(x)
        return super().forward(rows, real).view_as(x)

    def _joined(self, rows: Tensor, real: Tensor | None) -> Tensor:
        """Rows ``(tokens, D)``, zero where they are padding, by the statistics of all processes."""
        from torch.distributed.nn.functional import all_reduce

        wide = rows.to(working_dtype(rows))
        count = wide.new_tensor(len(rows)) if real is None else real.sum().to(wide.dtype)
        count = all_reduce(count)
        mean = all_reduce(wide.sum(0)) / count.clamp(min=1)
        centred = wide - mean if real is None else (wide - mean).masked_fill(~real, 0)
        variance = all_reduce(centred.square().sum(0)) / count.clamp(min=1)
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), count)
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(rows.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "batch": TokenBatchNorm,
    "scale": lambda dim: ScaleNorm(),
}
assert tuple(NORMS) == get_args(Norm)


def make_norm(name: str, dim: int, eps: float | None = None) -> nn.Module:
    """A norm by its name, for ``dim`` channels; ``eps`` under the root, None = the norm's own."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    norm = NORMS[name](dim)
    if eps is not None:
        norm.eps = eps  # type: ignore[assignment]
    return norm


def normed(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A norm on tokens; one that looks at several tokens at once is told which are real.

    Raises:
        TypeError: for what `nn.SyncBatchNorm.convert_sync_batchnorm` makes of ours: it would take L for the channels.
    """
    if isinstance(norm, nn.SyncBatchNorm):
        raise TypeError("norm='batch' is over all processes as it is: do not convert it to nn.SyncBatchNorm")
    result: Tensor = norm(x, mask) if isinstance(norm, TokenBatchNorm) else norm(x)
    return result
