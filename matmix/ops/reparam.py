"""Depthwise convolutions that are several in training and one afterwards (RepVGG; FFNet)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from matmix.ops.depthwise import convolve
from matmix.ops.effective import depthwise_of
from matmix.ops.plain import is_plain, is_plain_but_for_children
from matmix.ops.precision import working_dtype


class BatchNorm(nn.BatchNorm1d):
    """PyTorch's batch norm of ``(B, C, ...)``, which can be told which positions count."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of axes

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """In training by the statistics of the batch, which the running ones follow.

        Args:
            input: ``(B, C, ...)``.
            mask: bool, broadcasts to (B, 1, ...): the positions that count.

        Raises:
            ValueError: for a single position in all, which has no variance.
        """
        if not self.training:
            return super().forward(input)
        if input.numel() == input.shape[1]:
            raise ValueError(f"batch norm in training needs more than one position a channel, got {tuple(input.shape)}")
        if mask is None:
            return super().forward(input)
        mean, var, count = statistics(input, mask)
        if self.track_running_stats:
            self._follow(mean, var, count)
        factor, shift = (t.view(-1, *(1,) * (input.dim() - 2)) for t in _affine(self, mean, var))
        return (input.to(factor.dtype) * factor + shift).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Without momentum the plain mean of all batches, as torch.optim.swa_utils.update_bn asks for.
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        share = momentum * (count > 1)  # no real position, no news
        self.running_mean.add_(share * (mean - self.running_mean))
        self.running_var.add_(share * (var * (count / (count - 1).clamp(min=1)) - self.running_var))


def norm_affine(bn: nn.Module, input: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Factor and shift ``(C,)`` of a batch norm, in float32 at least.

    By the running statistics; in training by those of this batch, which are functions of it.

    Raises:
        TypeError: in training, for statistics that are joined over processes.
    """
    assert isinstance(bn, _BatchNorm)
    if bn.training and input is not None:
        if isinstance(bn, nn.SyncBatchNorm):
            raise TypeError("the matrix is that of one process: SyncBatchNorm has its statistics in training from all")
        mean, var, _ = statistics(input, mask)
        return _affine(bn, mean, var)
    assert bn.running_mean is not None and bn.running_var is not None
    exact = working_dtype(bn.weight)
    return _affine(bn, bn.running_mean.to(exact), bn.running_var.to(exact))


def _affine(bn: _BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    factor = bn.weight.to(var.dtype) * torch.rsqrt(var + bn.eps)
    return factor, bn.bias.to(var.dtype) - mean * factor


def statistics(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the positions of ``(B, C, ...)`` that count, for every channel."""
    axes, column = (0, *range(2, image.dim())), (-1, *(1,) * (image.dim() - 2))
    real = image.new_ones(1, 1, dtype=torch.bool).view(1, 1, *column[1:]) if mask is None else mask
    real = real.expand(image.shape[0], 1, *image.shape[2:])
    count = real.sum()
    wide = image.to(working_dtype(image)).masked_fill(~real, 0)
    mean = wide.sum(axes) / count.clamp(min=1)
    centred = (wide - mean.view(column)).masked_fill(~real, 0)
    return mean, centred.square().sum(axes) / count.clamp(min=1), count


class NormedBranch(nn.Module):
    """A map ``c`` without bias, and the batch norm ``bn`` of its C outputs (the names of FFNet's weights)."""

    def __init__(self, c: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.c = c
        self.bn = BatchNorm(c.weight.shape[0])

    def is_plain(self) -> bool:
        """Whether its weights may be read, since nobody looks on when it is called."""
        kind = type(self.c)
        return (
            kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
            and is_plain(self.c, kind)
            and is_plain(self.bn, BatchNorm)
            and type(self) in (NormedLinear, NormedConv)  # no subclass, which may have a forward of its own
            and is_plain_but_for_children(self, type(self))
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """The map's weight with the batch norm in it, and the bias, by the running statistics."""
        factor, shift = norm_affine(self.bn)
        return self._scaled(self.c.weight, factor), shift.to(self.c.weight.dtype)

    def _scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        return (weight.to(factor.dtype) * factor.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype)

    def _normed(self, mapped: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.bn(mapped)
        if isinstance(self.bn, nn.SyncBatchNorm):
            raise TypeError("NormedBranch: statistics over several processes (SyncBatchNorm) take no mask")
        return self.bn(mapped, mask)


class NormedLinear(NormedBranch):
    """A linear map of tokens and its batch norm, over all tokens or the real ones."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens ``(B, L, D)``, of which those of the mask ``(B, L)`` count."""
        if not self.bn.training and self.is_plain():
            return F.linear(x, *self.folded())
        rows = self.c(x).flatten(0, 1)  # channels second, as batch norm wants them
        return self._normed(rows, None if mask is None else mask.reshape(-1, 1)).unflatten(0, x.shape[:2])


class NormedConv(NormedBranch):
    """A depthwise convolution and its batch norm, over all positions or the real ones."""

    c: nn.Conv1d | nn.Conv2d

    def __init__(self, c: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(c)
        self.dim, self.size = c.in_channels, c.kernel_size

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, C, rows, columns)``, a sequence as one row, of which positions of the mask ``(B, 1, ...)`` count."""
        return self._normed(convolved(self.c, image, axes=len(self.size)), mask)

    def affine_kernel(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Kernel ``(C, 1, *size)`` and bias ``(C,)`` with which one convolution gives the same for this image."""
        kernel, bias = depthwise_of(self.c, self.dim, self.size)
        mapped = convolved(self.c, image, axes=len(self.size)) if self.bn.training else None
        factor, shift = norm_affine(self.bn, mapped, mask)
        shift = shift if bias is None else shift + factor * bias
        return self._scaled(kernel, factor), shift.to(kernel.dtype)


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
        for name, size in branches.items():
            self.add_module(name, NormedConv(padded_conv(dim, out_dim, size, stride, bias=False)))

    def _branches(self) -> list[NormedConv]:
        return [self.get_submodule(name) for name in self.names]  # type: ignore[misc]

    def is_plain(self) -> bool:
        """Whether nobody looks on when it, or one of its branches, is called."""
        return is_plain_but_for_children(self, BranchedConv) and all(branch.is_plain() for branch in self._branches())

    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel ``(C, 1, *size)`` and bias ``(C,)`` of the one convolution that is the same outside of training."""
        return _total([branch.folded() for branch in self._branches()])

    def affine_kernel(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the one convolution that is the same for this image, in training too."""
        return _total([branch.affine_kernel(image, mask) for branch in self._branches()])

    def fused(self) -> nn.Conv1d | nn.Conv2d:
        """That convolution as a module, detached."""
        with torch.no_grad():
            kernel, bias = self.merged()
            single = padded_conv(self.dim, len(kernel), tuple(kernel.shape[2:]), self.stride, bias=True)
            single.to(kernel.device, kernel.dtype)
            single.weight.copy_(kernel)
            single.bias.copy_(bias)  # type: ignore[union-attr]
        return single.train(self.training)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, C, rows, columns)``, a sequence as one row; in training positions of the mask ``(B, 1, ...)`` count."""
        branches = self._branches()
        # Nothing is called on the meta device, where costs are counted.
        if not any(branch.bn.training for branch in branches) and (
            image.is_meta or all(branch.is_plain() for branch in branches)
        ):
            return depthwise(image, *self.merged(), self.stride)
        out = branches[0](image, mask)
        for branch in branches[1:]:
            out = out + branch(image, mask)
        return out


@contextmanager
def keeping_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode leave their running statistics as they are; results are the same."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def padded_conv(dim: int, out_dim: int, size: tuple[int, ...], stride: int = 1, *, bias: bool) -> nn.Conv1d | nn.Conv2d:
    """A depthwise convolution about the token, zeros beyond the border."""
    conv: Any = nn.Conv1d if len(size) == 1 else nn.Conv2d
    return conv(dim, out_dim, size, stride, tuple(n // 2 for n in size), groups=dim, bias=bias)


def convolved(conv: nn.Module, image: Tensor, mask: Tensor | None = None, *, axes: int = 2) -> Tensor:
    """``conv(image)`` of branches, or of one padded depthwise convolution of so many axes.

    A sequence ``(B, C, 1, L)`` is one row, which a convolution of one axis takes without the rows.
    """
    if isinstance(conv, BranchedConv):
        return conv(image, mask)
    kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if axes == 1 else nn.Conv2d
    if is_plain(conv, kind):
        return depthwise(image, conv.weight, conv.bias, conv.stride[-1])
    return conv(image.squeeze(2)).unsqueeze(2) if axes == 1 else conv(image)


def kernel_of(
    conv: nn.Module, image: Tensor, size: tuple[int, ...], mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Kernel ``(C, *size)`` and bias ``(C,)`` with which one convolution does to this image what ``convolved`` does."""
    if isinstance(conv, BranchedConv):
        kernel, bias = conv.affine_kernel(image, mask)
    else:
        kernel, offset = depthwise_of(conv, image.shape[1], size)
        bias = kernel.new_zeros(len(kernel)) if offset is None else offset
    return kernel.squeeze(1), bias


def depthwise(image: Tensor, kernel: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolve ``(B, C, rows, columns)`` with odd kernels ``(C, 1, k)`` along the rows or ``(C, 1, k, k)``."""
    if kernel.dim() == 3:
        kernel = kernel.unsqueeze(2)
    pad = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    if stride == 1:
        return convolve(image, kernel, bias, pad)
    return F.conv2d(image, kernel, bias, stride, pad, groups=image.shape[1])


def _total(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum of kernels ``(C, 1, *size)`` about one centre, of the size of the largest along every axis, and that of
    the biases."""
    kernels, biases = zip(*parts, strict=True)
    size = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2, kernels[0].dim())]
    total = None
    for kernel in kernels:
        pad = [(n - k) // 2 for n, k in zip(size, kernel.shape[2:], strict=True)]
        both = [p for margin in reversed(pad) for p in (margin, margin)]
        kernel = F.pad(kernel, both) if any(pad) else kernel
        total = kernel if total is None else total + kernel
    assert total is not None
    return total, sum(biases[1:], biases[0])
