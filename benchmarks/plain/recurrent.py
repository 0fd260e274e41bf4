"""Plain forms of the linear recurrent mixers: the paper's parallel form where it has one, else token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain.forms import Grid, heads_of, plain, rms_norm, short_conv


def _projected(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values ``(B, H, L, .)``, gate and the rest of the projection as tokens."""
    signal, gate, control = m.in_proj(x).split(m.sizes, -1)
    if m.conv1d is not None:
        signal = F.silu(short_conv(m.conv1d, signal))
    keys = m.heads * m.key_dim
    query, key, value = (heads_of(t, m.heads) for t in signal.split((keys, keys, m.heads * m.head_dim), -1))
    return query, key, value, gate, control


def _end(m: Any, mixed: Tensor, gate: Tensor) -> Tensor:
    mixed = mixed.transpose(1, 2)
    normed = rms_norm(mixed, m.norm.weight, m.norm.eps)
    if gate.shape[-1]:
        normed = normed * F.silu(gate).view(normed.shape)
    return m.out_proj(normed.flatten(2))


@plain("retention")
def retention(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """RetNet, equation 5: ``(Q K^T * D) V``."""
    query, key, value, gate, _ = _projected(m, x)
    place = torch.arange(x.shape[1], device=x.device)
    query, key = _rotated(query, place), _rotated(key, place)
    distance = place.unsqueeze(1) - place
    rate = torch.log1p(-(2.0 ** (-5.0 - torch.arange(m.heads, device=x.device)))).view(-1, 1, 1)
    decay = torch.exp(rate * distance.clamp(min=0)).masked_fill(distance < 0, 0)
    return _end(m, (query * m.key_dim**-0.5 @ key.transpose(2, 3) * decay) @ value, gate)


def _rotated(x: Tensor, place: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = place.unsqueeze(1) * 10000.0 ** (-torch.arange(half, device=x.device) / half)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@plain("simple_gla")
def simple_gla(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The parallel form of the published reference: ``(Q K^T * exp(G_i - G_j)) V``."""
    query, key, value, gate, control = _projected(m, x)
    total = (F.logsigmoid(control + m.gate_bias) / m.gate_normalizer).transpose(1, 2).cumsum(-1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    return _end(m, (query * m.key_dim**-0.5 @ key.transpose(2, 3) * between) @ value, gate)


@plain("gla")
def gla(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 3, the recurrence token by token, as in the published reference."""
    query, key, value, gate, control = _projected(m, x)
    decay = heads_of((F.logsigmoid(m.gate_proj(control)) / m.gate_normalizer).exp(), m.heads)
    query = query * m.key_dim**-0.5
    state, out = value.new_zeros(*value.shape[:2], m.key_dim, m.head_dim), []
    # Taken apart once: the gradient of an index a token would be L tensors of the full size.
    for a, q, k, v in zip(*(t.unbind(2) for t in (decay, query, key, value)), strict=True):
        state = a.unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
        out.append((q.unsqueeze(-2) @ state).squeeze(-2))
    return _end(m, torch.stack(out, 2), gate)


@plain("delta_rule")
def delta_rule(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 4, the recurrence token by token, as in the published reference."""
    query, key, value, gate, control = _projected(m, x)
    query, key = (t * torch.rsqrt(t.pow(2).sum(-1, keepdim=True) + 1e-6) for t in (query, key))
    query, strength = query * m.key_dim**-0.5, torch.sigmoid(control).transpose(1, 2)
    state, out = value.new_zeros(*value.shape[:2], m.key_dim, m.head_dim), []
    for q, k, v, b in zip(*(t.unbind(2) for t in (query, key, value, strength[..., None])), strict=True):
        k = k.unsqueeze(-1)
        state = state + b.unsqueeze(-1) * k * (v.unsqueeze(-2) - k.transpose(2, 3) @ state)
        out.append((q.unsqueeze(-2) @ state).squeeze(-2))
    return _end(m, torch.stack(out, 2), gate)
