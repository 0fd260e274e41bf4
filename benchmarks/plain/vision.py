"""Plain forms of the image mixers: pooling, convolution, attention, perceptrons."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain.forms import Grid, attend, heads_of, joined, plain, star_relu


def image_of(x: Tensor, grid: Grid) -> Tensor:
    """Tokens as a channels-first image; a sequence is one row."""
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    return rearrange(x, "b (r c) d -> b d r c", r=rows, c=columns)


def tokens_of(image: Tensor) -> Tensor:
    """A channels-first image as tokens."""
    return rearrange(image, "b d r c -> b (r c) d")


def window(grid: Grid, size: int) -> tuple[int, int]:
    """``size`` along every axis that there is."""
    return (size, size) if len(grid) == 2 else (1, size)


@plain("pooling")
def pooling(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """PoolFormer, equation 4: average pooling minus the token."""
    image, size = image_of(x, grid), window(grid, m.window)
    pad = (size[0] // 2, size[1] // 2)
    return tokens_of(F.avg_pool2d(image, size, 1, pad, count_include_pad=False) - image)


@plain("max_pooling")
def max_pooling(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """``max_pool2d``."""
    size = window(grid, m.window)
    return tokens_of(F.max_pool2d(image_of(x, grid), size, 1, (size[0] // 2, size[1] // 2)))


@plain("sep_conv")
def sep_conv(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 7 of the MetaFormer baselines: pointwise, depthwise, pointwise."""
    x = star_relu(m.act1, F.linear(x, m.pwconv1.weight))
    weight = m.dwconv.weight
    if weight.dim() == 3:
        x = F.conv1d(x.transpose(1, 2), weight, padding=m.kernel // 2, groups=m.inner).transpose(1, 2)
    else:
        x = tokens_of(F.conv2d(image_of(x, grid), weight, padding=m.kernel // 2, groups=m.inner))
    return F.linear(x, m.pwconv2.weight)


@plain("attention")
def attention(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """``softmax(q k^T / sqrt(E)) v`` written out."""
    query, key, value = (heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1))
    return m.proj(joined(attend(query, key, value, m.head_dim**-0.5)))


@plain("random")
def random(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """RandFormer's ``einsum``."""
    return torch.einsum("mn, bnc -> bmc", m.random_matrix, x)


@plain("dense")
def dense(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """A free matrix a head."""
    return joined(m.M @ heads_of(x, m.heads))


@plain("mlp")
def mlp(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """MLP-Mixer, equation 1, without the norm and the skip."""
    return m.fc2(F.gelu(m.fc1(x.transpose(1, 2)))).transpose(1, 2)


@plain("raft")
def raft(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """RaftMLP, equation 4, with the einops of the published code."""
    rows = grid[0] if len(grid) == 2 else 1
    image = rearrange(x, "b (r c) d -> b r c d", r=rows)
    if m.vertical is not None:
        y = rearrange(m.vertical.norm(image), "b r c (g h) -> b c h (g r)", g=m.raft)
        y = m.vertical.fc2(F.gelu(m.vertical.fc1(y)))
        image = image + rearrange(y, "b c h (g r) -> b r c (g h)", g=m.raft)
    if m.horizontal is not None:
        y = rearrange(m.horizontal.norm(image), "b r c (g h) -> b r h (g c)", g=m.raft)
        y = m.horizontal.fc2(F.gelu(m.horizontal.fc1(y)))
        image = image + rearrange(y, "b r h (g c) -> b r c (g h)", g=m.raft)
    return image.flatten(1, 2)


@plain("active")
def active(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """ATM, equation 4: read at a fractional distance along each axis (gather), mix by softmax shares."""
    image = image_of(x, grid)
    offsets = m.offset_layer(x).chunk(m.axes, -1)  # along the row first
    branches = [m.atm_w(tokens_of(_moved(image, image_of(offsets[0], grid), 3)))]
    if m.axes == 2:
        branches.append(m.atm_h(tokens_of(_moved(image, image_of(offsets[1], grid), 2))))
    branches.append(m.atm_c(x))
    total = torch.stack(branches).sum(0).mean(1)
    shares = rearrange(m.fusion(total), "b (d n) -> n b 1 d", n=len(branches)).softmax(0)
    return m.proj((shares * torch.stack(branches)).sum(0))


def _moved(image: Tensor, offset: Tensor, axis: int) -> Tensor:
    """``image[p + offset[p]]`` along an axis, linear between pixels and zero beyond the image."""
    size = image.shape[axis]
    place = torch.arange(size, dtype=image.dtype, device=image.device)
    place = (place.view(-1, 1) if axis == 2 else place) + offset
    low = place.floor()
    out = torch.zeros_like(image)
    for at, share in ((low, low + 1 - place), (low + 1, place - low)):
        inside = (at >= 0) & (at < size)
        out = out + share * inside * image.gather(axis, at.clamp(0, size - 1).long())
    return out


@plain("inception")
def inception(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """iFormer, equations 3 to 6, on a channels-first image as published."""
    size = window(grid, 3)
    pad = (size[0] // 2, size[1] // 2)
    high, low = m.high_mixer, m.low_mixer
    first, second, third = x.split((m.part, m.part, m.low), 2)
    convolved = image_of(high.conv1(first), grid)
    convolved = F.conv2d(convolved, _kernel(high.proj1), padding=pad, groups=convolved.shape[1])
    pooled = high.proj2(tokens_of(F.max_pool2d(image_of(second, grid), size, 1, pad)))
    query, key, value = (heads_of(t, m.heads) for t in low.qkv(third).chunk(3, -1))
    attended = joined(attend(query, key, value, m.head_dim**-0.5))
    z = torch.cat((F.gelu(convolved), F.gelu(image_of(pooled, grid)), image_of(attended, grid)), 1)
    z = z + F.conv2d(z, _kernel(m.conv_fuse), padding=pad, groups=z.shape[1])
    return m.proj(tokens_of(z))


def _kernel(conv: Any) -> Tensor:
    return conv.weight if conv.weight.dim() == 4 else conv.weight.unsqueeze(2)


@plain("ffnified")
def ffnified(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """FFNet, equation 4: every branch with its batch norm, as published before export."""
    value = image_of(m.fc.c(x), grid)
    value = _batch_norm(m.fc.bn, value)
    return tokens_of(_branches(m.conv2, F.gelu(_branches(m.conv1, value))))


def _branches(conv: Any, image: Tensor) -> Tensor:
    out = None
    for name in conv.names:
        branch = conv.get_submodule(name)
        kernel = _kernel(branch.c)
        pad = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        y = _batch_norm(branch.bn, F.conv2d(image, kernel, padding=pad, groups=image.shape[1]))
        out = y if out is None else out + y
    assert out is not None
    return out


def _batch_norm(bn: Any, image: Tensor) -> Tensor:
    return F.batch_norm(image, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, bn.momentum, bn.eps)
