"""S4D: a state space model with a diagonal state matrix that does not change over time; a long convolution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.decaying_toeplitz import DecayingToeplitz
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.toeplitz import Toeplitz
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.registry import register
from matmix.ops.fft import to_complex
from matmix.ops.precision import full_precision, working_dtype

SPECTRA = ("lin", "inv", "legs")
DISCRETIZATIONS = ("zoh", "bilinear")


def spectrum(name: str, d_state: int) -> tuple[Tensor, Tensor]:
    """Initial eigenvalues A of the state matrix and input weights B, one of each conjugate pair: complex128 ``(N/2,)``.

    ``lin``: ``-1/2 + i pi n``. ``inv``: ``-1/2 + i (N/pi) (N/(2n + 1) - 1)``. Both with B = 1. ``legs``: the
    eigenvalues of HiPPO-LegS without its rank-one part, and its B in the basis of the eigenvectors (first component
    positive), imaginary parts clipped at 2 as in the published code (arXiv 2206.11893, section 4 and appendix).

    Raises:
        ValueError: for an unknown name, or an odd or non-positive state size.
    """
    if name not in SPECTRA:
        raise ValueError(f"spectrum must be one of {', '.join(SPECTRA)}, got {name!r}")
    if not isinstance(d_state, int) or d_state < 2 or d_state % 2:
        raise ValueError(f"d_state must be a positive even integer, got {d_state!r}")
    order = np.arange(d_state)
    pairs = order[: d_state // 2]
    if name == "legs":
        root = np.sqrt(2 * order + 1)
        full = -np.tril(np.outer(root, root), -1) - np.diag(order + 1)
        # Adding p p^T with p = root / sqrt(2) leaves -1/2 on the diagonal and a skew-symmetric rest.
        skew = full + np.outer(root, root) / 2 + np.eye(d_state) / 2
        angles, vectors = np.linalg.eigh(1j * skew)
        angles, vectors = -angles[: d_state // 2], vectors[:, : d_state // 2].conj()
        vectors = vectors * (np.abs(vectors[0]) / vectors[0])
        weights = vectors.conj().T @ root
        weights = weights.real + 1j * weights.imag.clip(-2, 2)
    else:
        angles = math.pi * pairs if name == "lin" else d_state / math.pi * (d_state / (2 * pairs + 1) - 1)
        weights = np.ones(d_state // 2)
    return torch.from_numpy(-0.5 + 1j * angles), torch.from_numpy(weights.astype(np.complex128))


class S4DKernel(nn.Module):
    """The parameters of a diagonal state space model for every channel, and its poles and coefficients.

    ``K[l] = 2 Re sum_n C_n Bd_n exp(l dt A_n)`` over one of each conjugate pair; B is 1 and absorbed in C.

    Args:
        dim: channels.
        d_state: state size N, even; N/2 conjugate pairs.
        kernels: 1, or 2 that share A and dt and have a C each.
    """

    def __init__(
        self, dim: int, d_state: int, init: str, discretization: str, dt_min: float, dt_max: float, kernels: int
    ) -> None:
        super().__init__()
        if discretization not in DISCRETIZATIONS:
            raise ValueError(f"discretization must be one of {', '.join(DISCRETIZATIONS)}, got {discretization!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min!r}, {dt_max!r}")
        self.discretization = discretization
        eigenvalues, weights = spectrum(init, d_state)
        lead = (dim, d_state // 2) if kernels == 1 else (kernels, dim, d_state // 2)
        mixed = weights * torch.view_as_complex(torch.randn(*lead, 2, dtype=torch.float64) * 0.5**0.5)
        self.C = nn.Parameter(torch.view_as_real(mixed).float())
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_A_real = nn.Parameter((-eigenvalues.real).log().float().repeat(dim, 1))
        self.A_imag = nn.Parameter(eigenvalues.imag.float().repeat(dim, 1))
        for parameter in (self.log_dt, self.log_A_real, self.A_imag):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, length: int) -> list[DecayingToeplitz]:
        """One causal matrix ``(1, D, length, length)`` a kernel."""
        dtype = working_dtype(self.C)
        with full_precision(self.C.device):
            dt = self.log_dt.to(dtype).exp().unsqueeze(-1)
            rate = torch.complex(-self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype))
            if self.discretization == "zoh":
                poles, inputs = dt * rate, torch.expm1(dt * rate) / rate
            else:
                half = dt * rate / 2
                poles, inputs = _log_bilinear(half), dt / (1 - half)
            pairs = torch.view_as_real(poles).unsqueeze(0)
            weights = torch.view_as_real(2 * to_complex(self.C) * inputs)
        weights = weights.unsqueeze(0) if weights.dim() == 3 else weights
        return [DecayingToeplitz(pairs, part.unsqueeze(0), length) for part in weights]


def _log_bilinear(half: Tensor) -> Tensor:
    """``log((1 + h) / (1 - h))``, exact for small h too."""
    size = half.abs().square()
    decay = (torch.log1p(size + 2 * half.real) - torch.log1p(size - 2 * half.real)) / 2
    return torch.complex(decay, torch.atan2(half.imag, 1 + half.real) + torch.atan2(half.imag, 1 - half.real))


def _state_spaces(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {name.replace("output_linear.0.", "output_linear."): value for name, value in state.items()}
    if ours.get("output_linear.weight", torch.empty(0)).dim() == 3:  # a convolution of one tap
        ours["output_linear.weight"] = ours["output_linear.weight"].squeeze(-1)
    return ours


@register(
    "s4d",
    matrix="DecayingToeplitz + Diagonal per channel",
    cost="O(L D log L + L D^2), O(N L D) for the kernel",
    source="state-spaces/s4",
    paper="2206.11893, equation 6",
    smallest={"d_state": 4},
)
class S4D(Mixer):
    """``y = GLU(W gelu(K * x + D x))`` with a kernel ``K[l] = 2 Re sum_n C_n Bd_n exp(l dt A_n)`` a channel.

    The matrix is a decaying Toeplitz matrix plus the skip D, per channel, and does not depend on the data. After the
    product come GELU, a linear map and a GLU, so ``merge`` is not linear. An image is read row by row.

    Args:
        d_state: state size N, even.
        bidirectional: a second kernel, of the same A and dt, for later tokens. It starts at lag 1, so that the token
            itself counts once; the mixer is then no recurrence.
        spectrum: initial A, ``"lin"``, ``"inv"`` or ``"legs"`` (see :func:`spectrum`).
        discretization: ``"zoh"`` or ``"bilinear"``.
        dt_min, dt_max: initial steps are log-uniform between them.
    """

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True)
    published: ClassVar = {"state-spaces/s4": _state_spaces}

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        d_state: int = 64,
        bidirectional: bool = False,
        spectrum: Literal["lin", "inv", "legs"] = "lin",
        discretization: Literal["zoh", "bilinear"] = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        if bidirectional:
            self.traits = replace(type(self).traits, causal=False, recurrent=False)
        super().__init__(dim, grid)
        self.bidirectional = bidirectional
        self.D = nn.Parameter(torch.randn(dim))
        self.kernel = S4DKernel(dim, d_state, spectrum, discretization, dt_min, dt_max, 1 + bidirectional)
        self.output_linear = nn.Linear(dim, 2 * dim)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = drop_padding(x, context.mask).mT.unsqueeze(-1)
        length = values.shape[2]
        causal, *reverse = self.kernel(length)
        matrix: Matrix = causal
        if reverse:
            ahead = reverse[0].taps().narrow(-1, 0, length - 1).flip(-1)  # the first is lag -1
            matrix = Toeplitz(torch.cat([ahead, causal.taps()], -1))
        return Projected(Sum((matrix, Diagonal(self.D.view(1, -1, 1).expand(-1, -1, length)))), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return F.glu(self.output_linear(F.gelu(merge_heads(mixed))), -1)

    # ------------------------------------------------------------------ as a recurrence

    def init_state(self, batch: int) -> Tensor:
        """Zeros ``(B, D, N/2, 1, 2)``, real pairs, in float32 or float64."""
        self._refuse_bidirectional()
        pairs = self.kernel.A_imag
        return torch.zeros(batch, *pairs.shape, 1, 2, dtype=working_dtype(pairs), device=pairs.device)

    def prefill(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._refuse_bidirectional()
        matrix, values, rest = self.project(x, self._context(x, None, mask))
        assert isinstance(matrix, Sum)
        out = drop_padding(self.merge(matrix.matmul(values), rest), mask)
        kernel = matrix.terms[0]
        assert isinstance(kernel, DecayingToeplitz)
        return out, kernel.final_state(values)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self._refuse_bidirectional()
        (kernel,) = self.kernel(1)
        mixed, state = kernel.step(x.unsqueeze(-1), state)
        mixed = mixed.to(x.dtype) + (self.D * x).unsqueeze(-1)
        return self.merge(mixed.unsqueeze(2), None).squeeze(1), state

    def _refuse_bidirectional(self) -> None:
        if self.bidirectional:
            raise NotImplementedError("S4D(bidirectional=True) is not recurrent: a token also sees later ones")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bidirectional={self.bidirectional}"
