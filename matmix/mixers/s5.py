"""S5: one state space for all channels together; its states are convolutions, and linear maps lead in and out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import HeadCat
from matmix.matrices.base import Matrix
from matmix.matrices.decaying_toeplitz import DecayingToeplitz, complex_product
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import register
from matmix.mixers.s4d import complex_expm1, spectrum
from matmix.ops.masks import padding_before
from matmix.ops.precision import full_precision, working_dtype

SCALES = ("row", "matrix", "one")


@register(
    "s5",
    matrix="DecayingToeplitz per state, its real and its imaginary part; bidirectional: and their transposes",
    cost="O(L N log L + L D (N + D))",
    source="lindermanlab/S5",
    paper="2208.04933, equations 3 to 6",
    smallest={"d_state": 4},
)
class S5(Mixer):
    """``s_t = z s_{t-1} + w (B x)_t``, ``y = (C s + D x)``, then a gate: N/2 complex states that all channels share.

    With ``z = exp(dt A)`` and the zero-order hold ``w = (z - 1) / A`` every state is a convolution of its input with
    ``w z^l``, whose real and imaginary part are a head each, applied to the real and imaginary part of ``B x`` (the
    width of a head is 2). B and C are linear layers of real parts, C doubled for the conjugate states. After them
    ``merge`` is not linear: ``u sigmoid(W gelu(y))`` with u = gelu(y) or y.

    ``A = -exp(log_A_real) + i A_imag``, so no state grows; the published code keeps the real part itself and, on one
    task, clips it.

    Args:
        d_state: states N, conjugates counted.
        copies: how often the spectrum of HiPPO-LegS of N / copies states is repeated to begin with (the published
            blocks). N / copies is even.
        causal: look back only. Where it is False, the same states also run from the other end, with a C of their own;
            both directions count the token itself, as published.
        act: of what the gate multiplies, "gelu" or "identity"; what the gate is made of has a GELU in any case.
        C_init: mean square of the initial C, real and imaginary parts together: "row" 2/N, "matrix" 2/(N dim), "one" 1.
        dt_min, dt_max: the initial step of each state is log-uniform between them.
    """

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True)
    undecayed: ClassVar[frozenset[str]] = frozenset({"log_dt", "log_A_real", "A_imag"})
    time_scale: float = 1.0
    """How long a step is, in steps of training: 2 for inputs at half the rate."""

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        d_state: int = 64,
        copies: int = 1,
        causal: bool = True,
        act: Literal["gelu", "identity"] = "gelu",
        C_init: Literal["row", "matrix", "one"] = "row",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        if not causal:
            self.traits = replace(type(self).traits, causal=False, recurrent=False)
        super().__init__(dim, grid)
        if d_state % (2 * copies):
            raise ValueError(f"d_state must be a multiple of 2 copies = {2 * copies!r}, got {d_state!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min!r}, {dt_max!r}")
        self.causal, self.act, self.d_state = causal, act, d_state
        states, ways = d_state // 2, 1 if causal else 2
        self.B = nn.Linear(dim, d_state, bias=False)  # real parts of all states, then imaginary ones
        self.C = nn.Linear(ways * d_state, dim, bias=False)
        mean_square = {"row": 2 / d_state, "matrix": 2 / (d_state * dim), "one": 1.0}[C_init]
        nn.init.normal_(self.B.weight, std=(2 * d_state) ** -0.5)
        nn.init.normal_(self.C.weight, std=(2 * mean_square) ** 0.5)  # 2: y is twice the real part of C s
        self.D = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, dim)
        self.log_dt = nn.Parameter(torch.empty(states).uniform_(math.log(dt_min), math.log(dt_max)))
        block = spectrum("legs", d_state // copies)[0].repeat(copies)
        self.log_A_real = nn.Parameter(torch.empty_like(self.log_dt.data).copy_((-block.real).log()))
        self.A_imag = nn.Parameter(torch.empty_like(self.log_dt.data).copy_(block.imag))

    def _modes(self) -> tuple[Tensor, Tensor]:
        """``log z`` and ``w`` of every state, real pairs ``(N/2, 2)``."""
        dtype = working_dtype(self.log_dt)
        with full_precision(self.log_dt.device):
            rate = torch.complex(-self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype))
            log_pole = self.time_scale * self.log_dt.to(dtype).exp() * rate
            return torch.view_as_real(log_pole), torch.view_as_real(complex_expm1(log_pole) / rate)

    def _kernel(self, length: int) -> DecayingToeplitz:
        """The real parts of ``w z^l`` of all states, then the imaginary parts: the real ones of ``-i w z^l``."""
        log_pole, weight = self._modes()
        turned = torch.stack((weight[..., 1], -weight[..., 0]), -1)
        return DecayingToeplitz(
            log_pole.repeat(2, 1)[None, :, None], torch.cat((weight, turned))[None, :, None], length
        )

    def _values(self, x: Tensor) -> Tensor:
        """``B x`` of tokens ``(B, L, D)`` for both halves of the heads, ``(B, N, L, 2)``."""
        parts = self.B(x).unflatten(-1, (2, -1)).permute(0, 3, 1, 2)
        return parts.repeat(1, 2, 1, 1)

    def project(self, x: Tensor, context: Context) -> Projected:
        kernel, values = self._kernel(x.shape[1]), self._values(x)
        matrix: Matrix = kernel
        if not self.causal:
            matrix, values = HeadCat.of(kernel, kernel.mT), values.repeat(1, 2, 1, 1)
        return Projected(matrix, values, x)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        real, imaginary = mixed.unflatten(1, (-1, 2, self.d_state // 2)).unbind(2)  # kernels, (B, ways, N/2, L, 2)
        states = torch.stack((real[..., 0] - imaginary[..., 1], real[..., 1] + imaginary[..., 0]), 2)
        return self._end(states.flatten(1, 3).mT, rest)  # (B, ways, part, N/2, L) to (B, L, ways N)

    def _end(self, states: Tensor, x: Tensor) -> Tensor:
        y = self.C(states) + self.D * x
        gated = F.gelu(y)
        return (gated if self.act == "gelu" else y) * torch.sigmoid(self.gate(gated))

    # ------------------------------------------------------------------ as a recurrence

    def init_state(self, batch: int) -> Tensor:
        """Zeros ``(B, N/2, 2)``, real pairs, in float32 or float64: the states before w."""
        if not self.causal:
            raise NotImplementedError("S5(causal=False) is not recurrent: a token also sees later ones")
        return self.log_dt.new_zeros(batch, self.d_state // 2, 2, dtype=working_dtype(self.log_dt))

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if state is not None:  # a head has a state for each of its two columns, which count by their sum h_0 + i h_1
            state = torch.stack((state, torch.zeros_like(state)), 2).repeat(1, 2, 1, 1).unsqueeze(2)
        padding = None if mask is None else padding_before(mask)
        mixed, after = self._kernel(x.shape[1]).absorb(self._values(x), state, padding)
        first, second = after[:, : self.d_state // 2, 0].unbind(2)
        after = torch.stack((first[..., 0] - second[..., 1], first[..., 1] + second[..., 0]), -1)
        return self.merge(mixed, x), after

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        log_pole, weight = self._modes()
        with full_precision(x.device):
            size, angle = log_pole[..., 0].exp(), log_pole[..., 1]
            pole = torch.stack((size * angle.cos(), size * angle.sin()), -1).to(state.dtype)
            entering = self.B(x).unflatten(-1, (2, -1)).mT.to(state.dtype)
            state = complex_product(pole, state) + entering
            read = complex_product(weight.to(state.dtype), state)
        return self._end(read.mT.flatten(1).to(x.dtype), x), state
