"""Plain forms of the sequence mixers without a state: linear and local attention, PoNet, Mega, matrices in Hydra's
block."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain.forms import FORMS, Grid, attend, gated_norm, heads_of, joined, name_of, plain, short_conv
from benchmarks.plain.vision import image_of, tokens_of, window


@plain("linear_attention")
def linear_attention(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 4: ``phi(Q) (phi(K)^T V)`` over ``phi(Q) sum phi(K)``."""
    query, key, value = (heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1))
    query, key = F.elu(query) + 1, F.elu(key) + 1
    total = (query * key.sum(2, keepdim=True)).sum(-1, keepdim=True)
    return m.proj(joined(query @ (key.transpose(2, 3) @ value) / total))


@plain("local_attention")
def local_attention(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Softmax over a window, keys and values unfolded."""
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    size = window(grid, m.window)

    def windows(t: Tensor) -> Tensor:  # (B, H, L, window, E)
        pad = (size[1] // 2, size[1] // 2, size[0] // 2, size[0] // 2)
        image = F.pad(rearrange(t, "b h (r c) e -> b h e r c", r=rows), pad)
        image = image.unfold(3, size[0], 1).unfold(4, size[1], 1)
        return rearrange(image, "b h e r c i j -> b h (r c) (i j) e")

    query, key, value = (heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1))
    inside = windows(x.new_ones(1, 1, rows * columns, 1)).squeeze(-1) > 0
    scores = torch.einsum("bhle, bhlke -> bhlk", query, windows(key)) * m.head_dim**-0.5
    weights = scores.masked_fill(~inside, -torch.inf).softmax(-1)
    return m.proj(joined(torch.einsum("bhlk, bhlke -> bhle", weights, windows(value))))


@plain("vq_attention")
def vq_attention(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Theorem 3.6: softmax over codewords, each weighted by its count; straight through to the mean of its keys."""
    scale = m.head_dim**-0.25

    def normed(t: Tensor) -> Tensor:
        return scale * F.layer_norm(heads_of(t, m.heads), (m.head_dim,))

    query, value = m.qv(x).chunk(2, -1)
    query, key, value = normed(query), normed(m.key(x)), heads_of(value, m.heads)
    one_hot, words, count, mean = _quantised(m.quantizer, key)
    bias = torch.where(count > 0, count.clamp(min=1).log(), -torch.inf).unsqueeze(2)
    averages = one_hot.transpose(2, 3) @ value / count.clamp(min=1).unsqueeze(-1)
    weights = (query @ (words + mean - mean.detach()).transpose(2, 3) + bias).softmax(-1)
    return m.proj(joined(weights @ averages))


def _quantised(quantizer: Any, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One-hot codes ``(B, H, L, S)`` of the nearest codewords, the codewords, their counts and means of their keys."""
    words = quantizer.c_sum / quantizer.c_count.clamp(min=0.01).unsqueeze(-1)
    with torch.no_grad():
        codes = torch.cdist(key, words.unsqueeze(0).expand(len(key), -1, -1, -1)).argmin(-1)
        one_hot = F.one_hot(codes, words.shape[1]).to(key.dtype)
    count = one_hot.sum(2)
    mean = one_hot.transpose(2, 3) @ key / count.clamp(min=1).unsqueeze(-1)
    return one_hot, words, count, mean


@plain("longvq")
def longvq(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Every pair of tokens with quantised keys, and the bias of those in the window."""
    normed = m.norm(x)
    gate, shared, reset, straight = m.mx_proj(ema(m.move, normed, grid)).split(m.sizes, -1)
    shared = F.silu(shared)
    size = shared.shape[-1]
    query, key = (
        F.layer_norm(shared * gamma + beta, (size,)) * size**-0.25 for gamma, beta in zip(m.gamma, m.beta, strict=True)
    )
    one_hot, words, _, mean = _quantised(m.quantizer, key.unsqueeze(1))
    quantised = (one_hot @ (words + mean - mean.detach())).squeeze(1)
    place = torch.arange(x.shape[1], device=x.device)
    distance = place - place.unsqueeze(1)
    bias = m.rel_pos_bias[distance.clamp(-m.window, m.window) + m.window]
    bias = bias.masked_fill(distance.abs() > m.window, 0)
    weights = (query @ quantised.transpose(1, 2) + bias).softmax(-1)
    mixed = weights @ F.silu(m.v_proj(normed))
    hidden = F.silu(straight + m.h_proj(mixed * F.silu(reset)))
    return x + torch.sigmoid(gate) * (hidden - x)


@plain("ponet")
def ponet(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Section 3: attention of the mean query, maxima of segments, maxima of neighbours."""
    query, gate, key, segment, local = m.in_proj(x).chunk(5, -1)
    length, dim = x.shape[1:]
    keys = heads_of(key, m.heads)
    mean = heads_of(query.mean(1, keepdim=True), m.heads)
    everywhere = joined(attend(mean, keys, keys, (dim // m.heads) ** -0.5))
    size = length // m.segments + 1
    count = -(-length // size)
    padded = F.pad(segment, (0, 0, 0, count * size - length), value=-torch.inf)
    largest = padded.view(-1, count, size, dim).amax(2)
    index = torch.arange(length, device=x.device) // size
    span = window(grid, 3)
    near = tokens_of(F.max_pool2d(image_of(local, grid), span, 1, (span[0] // 2, span[1] // 2)))
    out = (everywhere + largest[:, index]) * gate + near
    return out if m.proj is None else m.proj(out)


@plain("ema")
def ema(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Mega, equations 2 and 3: both kernels written out, one FFT convolution, as published."""
    length = x.shape[1]
    p, alpha = torch.sigmoid(m.delta), torch.sigmoid(m.alpha)
    powers = torch.arange(length, device=x.device) * torch.log(1 - p * alpha)
    kernel = torch.einsum("dnl, dn -> dl", p * m.beta * torch.exp(powers), m.gamma * m.d_state**-0.5)
    ahead, back = kernel.chunk(2)
    both = F.pad(ahead, (length - 1, 0)) + F.pad(back.flip(-1), (0, length - 1))
    y = F.pad(x.transpose(1, 2), (length - 1, 0))
    padded = 2 * y.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(y, padded) * torch.fft.rfft(both, padded), padded)
    y = y[..., 2 * length - 2 : 3 * length - 2].transpose(1, 2)
    return F.silu(y + m.omega * x)


@plain("mega")
def mega(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equations 7 to 16, the attention written out."""
    normed = m.norm(x)
    gate, shared, reset, straight = m.mx_proj(ema(m.move, normed, grid)).split(m.sizes, -1)
    shared = F.silu(shared)
    query, key = (shared * gamma + beta for gamma, beta in zip(m.gamma, m.beta, strict=True))
    place, reach = torch.arange(x.shape[1], device=x.device), len(m.rel_pos_bias) // 2
    bias = m.rel_pos_bias[(place - place.unsqueeze(1)).clamp(-reach, reach) + reach]
    weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5 + bias).softmax(-1)
    mixed = weights @ F.silu(m.v_proj(normed))
    hidden = F.silu(straight + m.h_proj(mixed * F.silu(reset)))
    return x + torch.sigmoid(gate) * (hidden - x)


# ------------------------------------------------------------------ Hydra's block around a matrix


def _block(m: Any, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gate (tokens), values ``(B, H, L, W)``, and what the matrix is made of (tokens)."""
    gate, signal, raw = m.in_proj(x).split(m.sizes, -1)
    value, *streams = short_conv(m.conv1d, signal).split((m.sizes[0], *m.matrix_mixer.streams), -1)
    streams = [F.silu(stream) for stream in streams] if m.matrix_mixer.activated else streams
    return gate, heads_of(F.silu(value), m.heads), [*streams, raw]


def _end(m: Any, mixed: Tensor, gate: Tensor) -> Tensor:
    return m.out_proj(gated_norm(m.norm, joined(mixed), gate))


@plain("low_rank")
def low_rank(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """``q (k^T v) / sqrt(L qk)``."""
    gate, value, streams = _block(m, x)
    query, key = (heads_of(stream, m.heads) for stream in streams[:2])
    width = m.matrix_mixer.qk_dim
    mixed = query @ (key.transpose(2, 3) @ value) / math.sqrt(x.shape[1] * width)
    return _end(m, mixed + value, gate)


@plain("cauchy")
def cauchy(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The matrix written out as in the published code, one term of the sum after the other (all at once would take
    ``L^2 H qk`` numbers)."""
    gate, value, streams = _block(m, x)
    query, key = (heads_of(stream, m.heads) for stream in streams[:2])
    width = m.matrix_mixer.qk_dim
    rows, columns = query.exp() + m.matrix_mixer.bias, key.exp() + m.matrix_mixer.bias + 1e-8
    matrix = sum(1 / (rows[..., d].unsqueeze(-1) + columns[..., d].unsqueeze(-2)) for d in range(width))
    return _end(m, matrix / math.sqrt(x.shape[1] * width) @ value + value, gate)


@plain("vandermonde")
def vandermonde(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The matrix of cosines written out, one term of the sum after the other."""
    gate, value, streams = _block(m, x)
    query, key = (heads_of(stream, m.heads) for stream in streams[:2])
    width = m.matrix_mixer.qk_dim
    place = 2e-3 * math.pi * torch.arange(x.shape[1], device=x.device)
    matrix = sum(
        torch.cos(query[..., d].unsqueeze(-1) * place) - torch.cos(key[..., d].unsqueeze(-2) * place.unsqueeze(-1))
        for d in range(width)
    )
    return _end(m, matrix / math.sqrt(2 * x.shape[1] * width) @ value + value, gate)


@plain("toeplitz")
def toeplitz(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Data-dependent taps, one FFT convolution of twice the length."""
    length = x.shape[1]
    gate, value, streams = _block(m, x)
    behind, ahead = (streams[0].transpose(1, 2) / (2 * math.sqrt(length))).chunk(2, 1)
    # Circular over 2 L: lags 0 to L - 1, a gap, then -(L - 1) to -1.
    kernel = torch.cat((behind, torch.zeros_like(behind[..., :1]), ahead[..., 1:].flip(-1)), -1)
    spectrum = torch.fft.rfft(value, 2 * length, dim=2) * torch.fft.rfft(kernel).unsqueeze(-1)
    return _end(m, torch.fft.irfft(spectrum, 2 * length, dim=2)[:, :, :length] + value, gate)


# ------------------------------------------------------------------ learned structured matrices


@plain("monarch")
def monarch(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 1: blocks within the rows, then within the columns."""
    rows, columns = m.left.shape[2], m.left.shape[1]
    y = rearrange(x, "b (r c) (h w) -> b h r c w", h=m.heads, r=m.right.shape[1])
    y = torch.einsum("hrij, bhrjw -> bhriw", m.right, y)
    y = torch.einsum("hcij, bhjcw -> bhicw", m.left, y)
    assert rows * columns == x.shape[1]
    return rearrange(y, "b h r c w -> b (r c) (h w)")


@plain("butterfly")
def butterfly(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Section 3: one sparse factor after the other."""
    length, size = x.shape[1], 2 * m.blocks.shape[2]
    y = F.pad(heads_of(x, m.heads), (0, 0, 0, size - length))
    for level in range(m.blocks.shape[1]):
        step = 1 << level
        blocks = rearrange(m.blocks[:, level], "h (n s) i j -> h n s i j", s=step)
        y = rearrange(y, "b h (n j s) w -> b h n j s w", j=2, s=step)
        y = torch.einsum("hnsij, bhnjsw -> bhnisw", blocks, y)
        y = y.reshape(len(x), m.heads, size, -1)
    return joined(y[:, :, :length])


@plain("spatial_fc")
def spatial_fc(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """One linear map over the tokens of every channel, as in PoolFormer's ablation."""
    return F.linear(x.transpose(1, 2), m.M[0]).transpose(1, 2)


@plain("heads")
def heads(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Each part on its channels by its own plain form."""
    parts = zip(m.parts, x.split(m.shares, -1), strict=True)
    return torch.cat([FORMS[name_of(part)](part, share, grid) for part, share in parts], -1)
