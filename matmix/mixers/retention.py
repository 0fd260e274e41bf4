"""Retention: linear attention that forgets at a fixed rate, another one for every head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from matmix.mixers.base import Grid
from matmix.mixers.fast_weights import FastWeightTokens, Forgetting, from_fla
from matmix.mixers.registry import register
from matmix.ops.precision import working_dtype


@register(
    "retention",
    matrix="Semiseparable per head",
    cost="O(L D E + L D^2)",
    source="fla-org/flash-linear-attention",
    paper="2307.08621, equations 5 to 8",
    smallest={"heads": 2, "expand_v": 1.0},
)
class Retention(Forgetting):
    """``M[i, j] = gamma_h^(i - j) R_i q_i . R_j k_j / sqrt(E)`` for ``i >= j``, with ``gamma_h = 1 - 2^(-5 - h)``.

    R turns pairs of channels by angles in proportion to the place of the token (rotary position embedding), so only
    the distance of two tokens matters; masked tokens neither decay nor count as a place. The recurrence is that of
    the published reference, the layer around it that of flash-linear-attention's ``MultiScaleRetention``: no biases,
    an RMS norm of every head (a group norm in the paper), a SiLU gate.

    Args:
        heads: number of heads H; head h forgets at 2^(-5 - h).
        expand_k: width of all queries over the model width; the width of a head must be even.
        expand_v: width of all values over the model width.
        out_gate: the SiLU gate.
        d_conv: taps of a causal convolution (with SiLU) over queries, keys and values; None is without.
        rotary: the turning of queries and keys; the published function alone has none.
        eps: added to the mean square of a head.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        out_gate: bool = True,
        d_conv: int | None = None,
        rotary: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(dim, grid, heads, expand_k, expand_v, out_gate, d_conv, eps)
        if rotary and self.key_dim % 2:
            raise ValueError(f"rotary needs an even width of a head, got expand_k * dim / heads = {self.key_dim}")
        self.rotary = rotary

    def _features(self, query: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        if not self.rotary:
            return query, key
        return turn(query, position), turn(key, position)

    def _log_decay(self, tokens: FastWeightTokens, mask: Tensor | None) -> Tensor:
        like, length = tokens.query, tokens.query.shape[2]
        heads = torch.arange(self.heads, device=like.device, dtype=working_dtype(like))
        rates = torch.log1p(-(2.0 ** (-5.0 - heads))).view(1, -1, 1).expand(-1, -1, length)
        return rates if mask is None else rates * mask.unsqueeze(1)

    published: ClassVar[dict[str, Callable[..., Any]]] = {"fla-org/flash-linear-attention": from_fla("g_proj")}


def turn(x: Tensor, position: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864): channel n of ``x (B, H, L, E)`` and channel n + E/2 are turned by
    ``position * 10000^(-2 n / E)`` radians; positions ``(B or 1, L)``."""
    half, dtype = x.shape[3] // 2, working_dtype(x)
    rate = 10000.0 ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = position[:, None, :, None].to(dtype) * rate
    cos, sin = angle.cos(), angle.sin()
    first, second = x.to(dtype).split(half, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
