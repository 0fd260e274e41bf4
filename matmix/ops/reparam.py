"""Depthwise convolutions that are several in training and one afterwards (RepVGG; FFNet)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from matmix.ops.depthwise import convolve
from matmix.ops.precision import working_dtype


class Convolved(NamedTuple):
    """What a depthwise convolution gave, and the one kernel and bias that give the same."""

    image: Tensor  # (B, C, rows, columns)
    kernel: Tensor  # (C, *size)
    bias: Tensor  # (C,)


class NormedBranch(nn.Module):
    """A linear map ``c`` without bias, and the batch norm ``bn`` of its C outputs (the names of FFNet's weights).

    The batch norm is computed here, over all positions of all samples, or over the real ones where there is a mask.
    """

    def __init__(self, c: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.c = c
        self.bn = nn.BatchNorm1d(c.weight.shape[0])

    def affine(self) -> tuple[Tensor, Tensor]:
        """``running_affine`` of the batch norm."""
        return running_affine(self.bn)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The map's weight with the batch norm in it, and the bias, by the running statistics."""
        factor, shift = self.affine()
        weight = self.c.weight
        scaled = weight.to(factor.dtype) * factor.view(-1, *(1,) * (weight.dim() - 1))
        return scaled.to(weight.dtype), shift.to(weight.dtype)

    def normed(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``batch_normed`` of the map's outputs."""
        return batch_normed(self.bn, image, mask)


class BranchedConv(nn.Module):
    """A sum of depthwise convolutions about the token, each with its batch norm; zeros beyond the border.

    In training the branches run one by one, since each batch norm needs its own statistics; otherwise their kernels
    are added (the smaller ones padded) and one convolution runs.

    Args:
        dim: channels C.
        branches: name -> kernel size along every axis, odd; the first is the largest.
        out_dim: channels of the result, a multiple of C (each channel gives as many in a row); C where absent.
        stride: step from one output to the next along every axis; the first stands at the border.
    """

    def __init__(
        self, dim: int, branches: dict[str, tuple[int, ...]], *, out_dim: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        if out_dim % dim:
            raise ValueError(f"out_dim must be a multiple of dim={dim}, got {out_dim}")
        self.names, self.dim, self.stride = tuple(branches), dim, stride
        conv = nn.Conv1d if len(branches[self.names[0]]) == 1 else nn.Conv2d
        for name, size in branches.items():
            branch = conv(dim, out_dim, size, groups=dim, bias=False)  # type: ignore[arg-type]
            self.add_module(name, NormedBranch(branch))

    def _branches(self) -> list[NormedBranch]:
        return [self.get_submodule(name) for name in self.names]  # type: ignore[misc]

    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel ``(C, 1, *size)`` and bias ``(C,)`` of the one convolution that is the same outside of training."""
        parts = [branch.folded() for branch in self._branches()]
        return _total([part[0] for part in parts]), sum((part[1] for part in parts[1:]), parts[0][1])

    def fused(self) -> nn.Conv1d | nn.Conv2d:
        """That convolution as a module, detached."""
        with torch.no_grad():
            kernel, bias = self.merged()
            conv = nn.Conv1d if kernel.dim() == 3 else nn.Conv2d
            size = tuple(kernel.shape[2:])
            padding = tuple(n // 2 for n in size)
            single = conv(
                self.dim,
                len(kernel),
                size,  # type: ignore[arg-type]
                self.stride,
                padding,  # type: ignore[arg-type]
                groups=self.dim,
                device=kernel.device,
                dtype=kernel.dtype,
            )
            single.weight.copy_(kernel)
            single.bias.copy_(bias)  # type: ignore[union-attr]
        return single.train(self.training)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Convolved:
        """``(B, C, rows, columns)``, a sequence as one row, to the result and the one convolution that gives it."""
        branches = self._branches()
        if not any(branch.bn.training for branch in branches):
            kernel, bias = self.merged()
            return Convolved(depthwise(image, kernel, bias, self.stride), kernel.squeeze(1), bias)
        out, kernels, shifts = None, [], []
        for branch in branches:
            weight = branch.c.weight
            mapped = depthwise(image, weight, None, self.stride)
            if branch.bn.training:
                normed, factor, shift = branch.normed(mapped, mask)
            else:
                factor, shift = branch.affine()
                normed = mapped * factor.to(mapped.dtype).view(-1, 1, 1) + shift.to(mapped.dtype).view(-1, 1, 1)
            out = normed if out is None else out + normed
            kernels.append((weight * factor.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype))
            shifts.append(shift.to(weight.dtype))
        assert out is not None
        return Convolved(out, _total(kernels).squeeze(1), sum(shifts[1:], shifts[0]))


def running_affine(bn: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Factor and shift ``(C,)`` of a batch norm by its running statistics, in at least float32."""
    exact = working_dtype(bn.weight)
    mean, var, _ = _running(bn)
    factor = bn.weight.to(exact) * torch.rsqrt(var.to(exact) + bn.eps)
    return factor, bn.bias.to(exact) - mean.to(exact) * factor


def batch_normed(bn: nn.BatchNorm1d, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The batch norm of ``(B, C, ...)`` by the batch's own statistics, which the running ones follow.

    Args:
        bn: the batch norm of C channels; its running statistics stay where ``track_running_stats`` is off.
        image: what is normed.
        mask: bool, broadcasts to (B, 1, ...): the positions that count.

    Returns:
        The normed image, and factor and shift ``(C,)``. Without a mask gradients do not pass through these two.

    Raises:
        TypeError: for a batch norm that was replaced by one that joins processes.
        ValueError: for a single position in all, which has no variance.
    """
    if isinstance(bn, nn.SyncBatchNorm):
        raise TypeError("NormedBranch: statistics over several processes (SyncBatchNorm) are not supported")
    if image.numel() == image.shape[1]:
        raise ValueError(f"batch norm in training needs more than one position a channel, got {tuple(image.shape)}")
    running_mean, running_var, momentum = _running(bn)
    if bn.track_running_stats:
        bn.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    if mask is None:
        followed = bn.track_running_stats
        normed, mean, scale = torch.native_batch_norm(
            image,
            bn.weight,
            bn.bias,
            running_mean if followed else None,
            running_var if followed else None,
            True,
            momentum,
            bn.eps,
        )
        factor = bn.weight * scale
        return normed, factor, bn.bias - mean * factor
    axes = (0, *range(2, image.dim()))
    count = mask.expand(image.shape[0], 1, *image.shape[2:]).sum()
    wide = image.to(working_dtype(image)).masked_fill(~mask, 0)
    mean = wide.sum(axes) / count.clamp(min=1)
    column = (-1, *(1,) * (image.dim() - 2))
    centred = (wide - mean.view(column)).masked_fill(~mask, 0)
    var = centred.square().sum(axes) / count.clamp(min=1)
    if bn.track_running_stats:
        with torch.no_grad():
            share = momentum * (count > 1)  # no real position, no news
            unbiased = var * (count / (count - 1).clamp(min=1))
            running_mean.add_(share * (mean - running_mean))
            running_var.add_(share * (unbiased - running_var))
    factor = bn.weight * torch.rsqrt(var + bn.eps)
    shift = bn.bias - mean * factor
    return (wide * factor.view(column) + shift.view(column)).to(image.dtype), factor, shift


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode leave their running statistics as they are; results are the same."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def convolved(conv: nn.Module, image: Tensor, mask: Tensor | None = None) -> Convolved:
    """``conv(image)`` of branches, or of the one convolution that took their place."""
    if isinstance(conv, BranchedConv):
        return conv(image, mask)
    assert isinstance(conv, nn.Conv1d | nn.Conv2d) and conv.bias is not None
    kernel = conv.weight
    return Convolved(depthwise(image, kernel, conv.bias, conv.stride[-1]), kernel.squeeze(1), conv.bias)


def depthwise(image: Tensor, kernel: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolve ``(B, C, rows, columns)`` with odd kernels ``(C, 1, k)`` along the rows or ``(C, 1, k, k)``."""
    if kernel.dim() == 3:
        kernel = kernel.unsqueeze(2)
    pad = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    if stride == 1:
        return convolve(image, kernel, bias, pad)
    return F.conv2d(image, kernel, bias, stride, pad, groups=image.shape[1])


def _running(bn: nn.BatchNorm1d) -> tuple[Tensor, Tensor, float]:
    """Running mean and variance, and how fast they follow."""
    assert bn.running_mean is not None and bn.running_var is not None and bn.momentum is not None
    return bn.running_mean, bn.running_var, bn.momentum


def _total(kernels: list[Tensor]) -> Tensor:
    """The sum of kernels ``(C, 1, *size)`` about one centre, of the size of the largest along every axis."""
    size = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2, kernels[0].dim())]
    total = None
    for kernel in kernels:
        pad = [(n - k) // 2 for n, k in zip(size, kernel.shape[2:], strict=True)]
        both = [p for margin in reversed(pad) for p in (margin, margin)]
        kernel = F.pad(kernel, both) if any(pad) else kernel
        total = kernel if total is None else total + kernel
    assert total is not None
    return total
