"""EMA: damped moving averages, several a channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.base import Matrix
from matmix.matrices.decaying_toeplitz import DecayingToeplitz
from matmix.matrices.toeplitz import Toeplitz, two_sided
from matmix.mixers.base import Context, Grid, Mixer, Projected, State, Traits, drop_padding, merge_heads
from matmix.mixers.registry import register
from matmix.ops.masks import padding_before
from matmix.ops.precision import full_precision, working_dtype


@register(
    "ema",
    matrix="DecayingToeplitz per channel; bidirectional: Toeplitz",
    cost="O(L D log L)",
    source="facebookresearch/mega",
    paper="2209.10655, equations 2 and 3",
    smallest={"d_state": 3},
)
class EMA(Mixer):
    """``y = silu(K * x + omega x)`` with ``K[l] = sum_n p_n beta_n gamma_n (1 - p_n a_n)^l / sqrt(N)`` per channel.

    ``p = sigmoid(delta)`` weighs a new token and ``a = sigmoid(alpha)`` damps the forgetting. Looking both ways, each
    way has a kernel of its own, and both include the token itself, as in the published code. The matrix does not
    depend on the data; omega is its last mode, one that forgets at once. The end is not linear in the product: SiLU.
    Images are read row by row.

    Args:
        d_state: averages N of a channel.
        causal: look back only; then the mixer also runs token by token.
    """

    traits = Traits(mask="trim", aligned=True)

    def __init__(self, dim: int, grid: Grid | None = None, *, d_state: int = 16, causal: bool = False) -> None:
        if causal:
            self.traits = replace(type(self).traits, causal=True, recurrent=True)
        super().__init__(dim, grid)
        self.d_state, self.causal = d_state, causal
        kernels = dim if causal else 2 * dim
        self.delta = nn.Parameter(0.2 * torch.randn(kernels, d_state, 1))
        self.alpha = nn.Parameter(0.2 * torch.randn(kernels, d_state, 1))
        signs = (-1.0) ** torch.arange(d_state).unsqueeze(1)
        self.beta = nn.Parameter(signs + 0.02 * torch.randn(kernels, d_state, 1))
        self.gamma = nn.Parameter(torch.randn(kernels, d_state))
        self.omega = nn.Parameter(torch.randn(dim))

    def _modes(self) -> tuple[Tensor, Tensor]:
        """Log poles and weights of the averages, ``(kernels, N)``, in float32 at least."""
        dtype = working_dtype(self.delta)
        weight, damping = (torch.sigmoid(t.squeeze(-1).to(dtype)) for t in (self.delta, self.alpha))
        # A pole of 0 has no logarithm; 1e-7 is one as good, and its gradient is finite.
        poles = torch.log1p(-(weight * damping).clamp(max=1 - 1e-7))
        return poles, weight * self.beta.squeeze(-1) * self.gamma * self.d_state**-0.5

    def _one_way(self, poles: Tensor, weights: Tensor, length: int) -> DecayingToeplitz:
        logs, coefficients = (torch.stack((t, torch.zeros_like(t)), -1).unsqueeze(0) for t in (poles, weights))
        return DecayingToeplitz(logs, coefficients, length)

    def _mixing(self, length: int) -> Matrix:
        poles, weights = self._modes()
        if self.causal:
            at_once = poles.new_full((self.dim, 1), -math.inf)
            omega = self.omega.to(weights.dtype).unsqueeze(-1)
            return self._one_way(torch.cat((poles, at_once), 1), torch.cat((weights, omega), 1), length)
        ahead, back = self._one_way(poles, weights, length).taps().split(self.dim, 1)
        now = ahead[..., :1] + back[..., :1] + self.omega.unsqueeze(-1)
        return Toeplitz(two_sided(back, now, ahead))

    def project(self, x: Tensor, context: Context) -> Projected:
        return Projected(self._mixing(x.shape[1]), x.mT.unsqueeze(-1))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return F.silu(merge_heads(mixed))

    # ------------------------------------------------------------------ token by token: the averages

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return super().init_state(batch)
        return self.delta.new_zeros(batch, self.dim, self.d_state, dtype=working_dtype(self.delta))

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        values = drop_padding(x, mask).mT.unsqueeze(-1)
        if state is not None:
            state = torch.stack((state, torch.zeros_like(state)), -1).unsqueeze(3)
        kernel = self._one_way(*self._modes(), x.shape[1])
        mixed, state = kernel.absorb(values, state, None if mask is None else padding_before(mask))
        return self.merge(mixed + self.omega.view(-1, 1, 1) * values, None), state[..., 0, 0]

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        poles, weights = self._modes()
        with full_precision(x.device):
            value = x.to(state.dtype)
            state = poles.exp() * state + value.unsqueeze(-1)
            mixed = (weights * state).sum(-1) + self.omega * value
        return F.silu(mixed.to(x.dtype)), state

    published: ClassVar[dict[str, Callable[..., Any]]] = {"facebookresearch/mega": lambda module, state: state}
