"""DecayingToeplitz: a causal convolution whose kernel is a sum of decaying modes; S4D, EMA."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.base import Matrix, Shape, static
from matmix.matrices.legend import axes
from matmix.matrices.toeplitz import CausalToeplitz, dense_toeplitz_is_faster, lags_to_dense, toeplitz_cost
from matmix.ops.cost import Cost
from matmix.ops.fft import convolve
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import joined, known, whole

OPEN = 32  # powers of the shorter table where the length is open


class DecayingToeplitz(Matrix):
    """``M[i, j] = K[i - j]`` for ``j <= i``, ``K[l] = Re sum_n coefficients_n exp(l log_poles_n)``.

    A linear recurrence that does not change over time, ``h[t] = z h[t-1] + v[t]``, ``y[t] = Re sum_n c_n h_n[t]``
    with poles ``z = exp(log_poles)`` inside the unit disc (S4D, arXiv 2206.11893, eq. 3 with the discrete A = z,
    B = 1; a damped moving average is one of real poles). ``step`` and ``final_state`` run it as such.

    The taps cost O(N L) per head as matrix products of two short tables of powers, ``z^(q S + r) = z^(q S) z^r``
    with S about sqrt(L): O(N sqrt L) exponentials and memory. The product is then CausalToeplitz's, O(L log L W).
    """

    log_poles: Tensor = axes("B|1 H|1 N 2")  # log |z| <= 0 (-inf for z = 0), and the angle in radians a token
    coefficients: Tensor = axes("B|1 H|1 N 2")  # real and imaginary part
    length: int = static(least=1)

    properties: ClassVar = frozenset({"causal", "toeplitz"})
    dense_below: ClassVar = 32  # at width 1

    @property
    def shape(self) -> Shape:
        batch = max(self.log_poles.shape[0], self.coefficients.shape[0])
        heads = max(self.log_poles.shape[1], self.coefficients.shape[1])
        return (batch, heads, self.length, self.length)

    def powers(self, exponents: Tensor) -> Tensor:
        """``z^l`` for integers ``l >= 0`` of shape ``(K,)`` or ``(B, 1, K)``, real pairs ``(B or 1, H, K, N, 2)``."""
        dtype = working_dtype(self.log_poles)
        # -inf * 0 is not a number; far below the smallest exponent of float32, e^x is 0 all the same.
        decay = self.log_poles[..., 0].to(dtype).clamp(min=-1e30)
        # An angle of thousands of radians has lost its digits in float32; these tables are short, so: float64.
        wide = dtype if self.device.type == "mps" else torch.float64
        angle = (exponents.to(wide).unsqueeze(-1) * self.log_poles[..., 1].to(wide).unsqueeze(-2)).remainder(
            2 * math.pi
        )
        angle = angle.to(dtype)
        size = (exponents.to(dtype).unsqueeze(-1) * decay.unsqueeze(-2)).exp()
        return torch.stack([size * angle.cos(), size * angle.sin()], -1)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """``z^r`` for r < S and ``z^(q S)`` for q < ceil(L / S), with S about sqrt(L)."""
        block = 1 if known(self.length) else OPEN  # about sqrt(L); a power of two
        while known(self.length) and 2 * block * block <= self.length:
            block *= 2
        place = torch.arange(block, device=self.device)
        count = whole(self.length, block)
        start = block * torch.arange(count, device=self.device)
        table = self.powers(torch.cat([place, start]))
        return table.narrow(2, 0, block), table.narrow(2, block, count)

    def taps(self) -> Tensor:
        """The kernel ``K``, ``(B or 1, H, L)`` in float32 or float64."""
        dtype = working_dtype(self.log_poles, self.coefficients)
        with full_precision(self.device):
            within, across = self._tables()
            weighted = complex_product(within, self.coefficients.to(dtype).unsqueeze(2))
            # Re(a b) = Re a Re b - Im a Im b: one real product over (n, part), the sign folded into the smaller table.
            turned = torch.stack([weighted[..., 0], -weighted[..., 1]], -1)
            kernel = across.to(dtype).flatten(3) @ turned.flatten(3).mT
        return joined(kernel, 2, self.length)

    def _dense_is_faster(self, width: int) -> bool:
        return dense_toeplitz_is_faster(self.length, width, self.dense_below)

    def _matmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps(), 0)

    def _rmatmul(self, values: Tensor) -> Tensor:
        return convolve(values, self.taps().flip(-1), self.length - 1)

    @property
    def mT(self) -> Matrix:
        return CausalToeplitz(self.taps().to(self.dtype)).mT

    def diagonal(self) -> Tensor:
        first = self.coefficients[..., 0].to(working_dtype(self.coefficients)).sum(-1, keepdim=True)
        return first.expand(*self.shape[:2], self.length).to(self.dtype)

    def to_dense(self) -> Tensor:
        dtype = working_dtype(self.log_poles, self.coefficients)
        lag = torch.arange(self.length, device=self.device)
        powers, weights = self.powers(lag).to(dtype), self.coefficients.to(dtype).unsqueeze(2)
        kernel = (powers[..., 0] * weights[..., 0] - powers[..., 1] * weights[..., 1]).sum(-1)
        ahead = kernel.new_zeros(()).expand(*kernel.shape[:2], self.length - 1)
        return lags_to_dense(torch.cat([ahead, kernel], -1)).to(self.dtype)

    # ------------------------------------------------------------------ as a recurrence

    def step(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token.

        Args:
            value: ``(B, H, W)``.
            state: ``h`` before the token, real pairs ``(B, H, N, W, 2)``; zeros before the first.

        Returns:
            the output ``(B, H, W)`` and the state after the token, both in the dtype of the state.
        """
        pole = self.powers(torch.ones(1, device=self.device)).movedim(2, 3)  # (B or 1, H, N, 1, 2)
        state = complex_product(pole.to(state.dtype), state)
        state = torch.stack([state[..., 0] + value.to(state.dtype).unsqueeze(2), state[..., 1]], -1)
        weight = self.coefficients.to(state.dtype).unsqueeze(3)
        return (weight[..., 0] * state[..., 0] - weight[..., 1] * state[..., 1]).sum(2), state

    def absorb(
        self, values: Tensor, state: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The product with ``values (B, H, L, W)`` that follow on a state, and the state after them.

        Args:
            values: zeros for the first ``padding`` tokens.
            state: as in ``step``; zeros where absent.
            padding: for how many tokens each sample's state stays as it is, ``(B,)``; rows before are not made.
        """
        mixed, after = self.matmul(values), self.final_state(values)
        if state is None:
            return mixed, after
        batch, heads, modes, width = state.shape[:4]
        dtype, one = after.dtype, torch.ones(1, device=self.device)
        with full_precision(self.device):
            entering = complex_product(self.powers(one).movedim(2, 3).to(dtype), state.to(dtype))
            # Row i reads z^(i + 1) h: a kernel once more, whose coefficients hang on the sample.
            weights = complex_product(self.coefficients.to(dtype).unsqueeze(3), entering).movedim(3, 2)
            poles = self.log_poles.unsqueeze(2).expand(*self.log_poles.shape[:2], width, modes, 2).flatten(1, 2)
            left = DecayingToeplitz(poles, weights.flatten(1, 2), self.length).taps()
            left = left.unflatten(1, (heads, width)).mT  # (B, H, L, W)
            count = torch.full((batch,), self.length, device=self.device)
            if padding is not None:
                count = count - padding
                late = torch.arange(self.length, device=self.device) - padding.unsqueeze(1)
                late = late.clamp(min=0).view(batch, 1, -1, 1).expand(left.shape)
                left = left.gather(2, late)
            kept = self.powers(count.view(-1, 1, 1)).movedim(2, 3)  # (B, H, N, 1, 2)
            return (mixed + left).to(mixed.dtype), after + complex_product(kept.to(dtype), state.to(dtype))

    def final_state(self, values: Tensor) -> Tensor:
        """The state after all of ``values (B, H, L, W)``, from zeros: ``h = sum_j z^(L-1-j) v[j]``, O(N L W)."""
        dtype = working_dtype(values, self.log_poles)
        with full_precision(self.device):
            within, across = (table.to(dtype) for table in self._tables())
            block, count = within.shape[2], across.shape[2]
            late = F.pad(values.to(dtype).flip(2), (0, 0, 0, block * count - self.length))
            late = late.unflatten(2, (count, block))
            sums = torch.einsum("...rnp,...qrw->...qnwp", within, late)
            return complex_product(across.unsqueeze(-2), sums).sum(2)

    def cost(self, width: int) -> Cost:
        taps = 4 * self.length * self.coefficients.numel() // 2
        entries = self.log_poles.numel() + self.coefficients.numel()
        product = toeplitz_cost(self.shape, self.coefficients.itemsize, width)
        return product + Cost(taps, self.coefficients.itemsize * entries)

    @classmethod
    def example(cls, grid: tuple[int, ...], heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        decay, angle = -torch.rand(batch, heads, 4, dtype=dtype), math.pi * torch.rand(batch, heads, 4, dtype=dtype)
        weights = torch.randn(batch, heads, 4, 2, dtype=dtype)
        return cls(torch.stack([decay, angle], -1), weights, math.prod(grid))


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two tensors of real pairs ``(..., 2)``."""
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    return torch.stack([real, a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1)
