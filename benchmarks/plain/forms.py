"""The table of plain forms, and the few lines that several share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from matmix.mixers.registry import list_mixers, mixer_info

Grid = tuple[int, ...]
Form = Callable[[Any, Tensor, Grid], Tensor]

FORMS: dict[str, Form] = {}


def plain(name: str) -> Callable[[Form], Form]:
    """Enter a function as the plain form of a mixer."""

    def enter(form: Form) -> Form:
        FORMS[name] = form
        return form

    return enter


def name_of(mixer: Any) -> str:
    """The name that a mixer is registered by."""
    return next(name for name in list_mixers() if mixer_info(name).cls is type(mixer))


def star_relu(act: Any, x: Tensor) -> Tensor:
    """``scale relu(x)^2 + bias``, as in the published code."""
    return act.scale * F.relu(x) ** 2 + act.bias


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Vaswani et al., equation 1, by its letters."""
    return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value


def heads_of(x: Tensor, heads: int) -> Tensor:
    """``(B, L, H*W)`` to ``(B, H, L, W)``."""
    return rearrange(x, "b l (h w) -> b h l w", h=heads)


def joined(x: Tensor) -> Tensor:
    """``(B, H, L, W)`` to ``(B, L, H*W)``."""
    return rearrange(x, "b h l w -> b l (h w)")


def short_conv(conv: Any, x: Tensor) -> Tensor:
    """The depthwise ``conv1d`` of the Mamba and Hydra layers, on tokens ``(B, L, C)``."""
    before = conv.size - 1 if conv.causal else conv.size // 2
    y = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=before, groups=x.shape[2])
    return y[..., : x.shape[1]].transpose(1, 2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight``."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def gated_norm(norm: Any, x: Tensor, gate: Tensor) -> Tensor:
    """The gated RMS norm of Mamba-2 (gate first) and Hydra (norm first), one group."""
    if norm.gate_first:
        return rms_norm(x * F.silu(gate), norm.weight, norm.eps)
    return rms_norm(x, norm.weight, norm.eps) * F.silu(gate)
