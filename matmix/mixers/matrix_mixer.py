"""The block that Hydra's framework puts around its data-dependent matrix classes; each class is a mixer of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.identity import Identity
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.state_space import head_width


class MatrixMixer(Mixer):
    """``y = W_o (norm(M(q, k) v + v) silu(z))`` with ``z | v | q | k = W x`` (Hydra, arXiv 2407.09941, section 2).

    v, q and k go through a short centred convolution, v (in some classes q and k too) through SiLU. The end is not
    linear in the product: an RMS norm and a gate come before the output projection. A subclass gives M.

    Args:
        expand: inner width over model width.
        headdim: width of a head; None is the largest divisor of ``expand * dim`` up to 64.
        qk_dim: numbers a token and head in q, and in k.
        d_conv: taps of the convolution, odd.
        bias: biases of the input and output projections.
        conv_bias: bias of the convolution.
        max_len: the length that scales M; None is the number of real tokens. Published models keep the length that
            they were built for, whatever the length of the sequence.
    """

    traits = Traits(data_dependent=True, mask="trim")
    activates_queries: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: int = 2,
        headdim: int | None = None,
        qk_dim: int = 16,
        d_conv: int = 7,
        bias: bool = False,
        conv_bias: bool = True,
        max_len: int | None = None,
    ) -> None:
        super().__init__(dim, grid)
        for name, value in (("expand", expand), ("qk_dim", qk_dim), ("max_len", 1 if max_len is None else max_len)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd, as the convolution is centred, got {d_conv!r}")
        inner = expand * dim
        self.heads = inner // head_width(inner, headdim, 1, "expand * dim")
        self.qk_dim, self.max_len = qk_dim, max_len
        keys = self.heads * qk_dim
        self.sizes = (inner, keys, keys)
        self.in_proj = nn.Linear(dim, inner + sum(self.sizes), bias=bias)
        self.conv1d = ShortConv(sum(self.sizes), d_conv, causal=False, bias=conv_bias)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.add_parameters()

    def add_parameters(self) -> None:
        """Parameters of M itself, of a class that has some."""

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float) -> Matrix:
        """M for q and k ``(B, H, L, qk)``; ``size`` ((B, 1, 1, 1) or a number) is the length that scales it."""
        raise NotImplementedError

    def project(self, x: Tensor, context: Context) -> Projected:
        mask = context.mask
        gate, inner = self.in_proj(x).split((self.sizes[0], sum(self.sizes)), -1)
        # Zeros at padding on both sides of the convolution, whose bias (and that of in_proj) would fill it.
        value, query, key = self.conv1d(drop_padding(inner, mask)).split(self.sizes, -1)
        if self.activates_queries:
            query, key = F.silu(query), F.silu(key)
        values, query, key = (split_heads(t.contiguous(), self.heads) for t in (F.silu(value), query, key))
        size: Tensor | float = float(x.shape[1] if self.max_len is None else self.max_len)
        if mask is not None:
            values = values.masked_fill(~mask[:, None, :, None], 0)
            if self.max_len is None:
                size = mask.sum(1).clamp(min=1).to(query.dtype)[:, None, None, None]
        return Projected(Sum((self.mixing(query, key, size), Identity.like(values))), values, gate)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return self.out_proj(self.norm(merge_heads(mixed), rest))

    published: ClassVar[dict[str, Any]] = {
        "goombalab/hydra": lambda module, state: {
            name.removeprefix("matrix_mixer."): value for name, value in state.items()
        }
    }
