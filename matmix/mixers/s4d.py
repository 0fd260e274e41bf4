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
from matmix.matrices.decaying_toeplitz import DecayingToeplitz, complex_product
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.toeplitz import Toeplitz
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, merge_heads
from matmix.mixers.registry import register
from matmix.ops.fft import to_complex
from matmix.ops.masks import padding_before
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import exporting

SPECTRA = ("lin", "inv", "inv2", "quad", "legs", "real", "rand")
DISCRETIZATIONS = ("zoh", "bilinear")
STEPS = ("exp", "softplus")


def spectrum(name: str, d_state: int) -> tuple[Tensor, Tensor]:
    """Initial eigenvalues A of the state matrix and input weights B, one of each conjugate pair: complex128 ``(N/2,)``.

    With n from 0 to N/2 - 1, and B = 1 but for ``legs`` (arXiv 2206.11893, section 4 and appendix):

    - ``lin``: ``-1/2 + i pi n``;
    - ``inv``: ``-1/2 + i (N/pi) (N/(2n + 1) - 1)``; ``inv2``: ``-1/2 + i (N/pi) (N/(n + 1) - 1)``;
    - ``quad``: ``-1/2 + i (2n + 1)^2 / pi``;
    - ``legs``: the eigenvalues of HiPPO-LegS without its rank-one part, and its B in the basis of the eigenvectors
      (first component positive), imaginary parts clipped at 2 as in the published code;
    - ``real``: ``-(n + 1)``;
    - ``rand``: ``-1/2 + i exp(g)`` with normal g.

    Raises:
        ValueError: for an unknown name, or an odd or non-positive state size.
    """
    if name not in SPECTRA:
        raise ValueError(f"spectrum must be one of {', '.join(SPECTRA)}, got {name!r}")
    if not isinstance(d_state, int) or d_state < 2 or d_state % 2:
        raise ValueError(f"d_state must be a positive even integer, got {d_state!r}")
    pairs = np.arange(d_state // 2)
    decays, weights = np.full(d_state // 2, -0.5), np.ones(d_state // 2, np.complex128)
    match name:
        case "lin":
            angles = math.pi * pairs
        case "inv":
            angles = d_state / math.pi * (d_state / (2 * pairs + 1) - 1)
        case "inv2":
            angles = d_state / math.pi * (d_state / (pairs + 1) - 1)
        case "quad":
            angles = (2 * pairs + 1) ** 2 / math.pi
        case "rand":
            angles = np.exp(torch.randn(d_state // 2, dtype=torch.float64, device="cpu").numpy())
        case "real":
            angles, decays = np.zeros(d_state // 2), -(pairs + 1.0)
        case _:
            angles, weights = _legs(d_state)
    return torch.from_numpy(decays + 1j * angles), torch.from_numpy(weights)


def _legs(d_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Imaginary parts and input weights of ``legs``."""
    order = np.arange(d_state)
    root = np.sqrt(2 * order + 1)
    full = -np.tril(np.outer(root, root), -1) - np.diag(order + 1)
    # Adding p p^T with p = root / sqrt(2) leaves -1/2 on the diagonal and a skew-symmetric rest.
    skew = full + np.outer(root, root) / 2 + np.eye(d_state) / 2
    angles, vectors = np.linalg.eigh(1j * skew)
    angles, vectors = -angles[: d_state // 2], vectors[:, : d_state // 2].conj()
    vectors = vectors * (np.abs(vectors[0]) / vectors[0])
    weights = vectors.conj().T @ root
    return angles, weights.real + 1j * weights.imag.clip(-2, 2)


class S4DKernel(nn.Module):
    """The parameters of a diagonal state space model for every channel, and its poles and coefficients.

    ``K[l] = 2 Re sum_n C_n Bd_n exp(l dt A_n)`` over one of each conjugate pair; B is absorbed in C, as in the
    minimal published code. ``A = -exp(log_A_real) + i A_imag``, and ``dt`` is exp (or softplus) of ``log_dt``.

    Args:
        dim: channels D.
        d_state: state size N: N/2 conjugate pairs (N even), or N real modes.
        kernels: 1, or 2 that share A and dt and have a C each.
        init: the spectrum that A starts at.
        discretization: of the continuous system.
        step: how dt comes from ``log_dt``.
        real: modes and weights are real: the real parts of the spectrum, no ``A_imag``.
        groups: sets of A; channel h has set ``h % groups``. None is one a channel.
        dt_min, dt_max: initial steps are log-uniform between them.
    """

    undecayed: ClassVar[frozenset[str]] = frozenset({"log_dt", "log_A_real", "A_imag"})
    time_scale: float = 1.0
    """How long a step is, in steps of training: 2 for inputs at half the rate."""

    def __init__(
        self,
        dim: int,
        d_state: int,
        kernels: int = 1,
        *,
        init: str = "lin",
        discretization: str = "zoh",
        step: str = "exp",
        real: bool = False,
        groups: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("discretization", discretization, DISCRETIZATIONS),
            ("dt_transform", step, STEPS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min!r}, {dt_max!r}")
        groups = dim if groups is None else groups
        if dim % groups:
            raise ValueError(f"groups must be a positive divisor of dim={dim}, got {groups!r}")
        self.discretization, self.step_by, self.groups = discretization, step, groups
        # On the CPU whatever the default device is, as eigenvectors are numpy's; then where other parameters are made.
        drawn = [spectrum(init, 2 * d_state if real else d_state) for _ in range(groups if init == "rand" else 1)]
        eigenvalues, weights = (torch.stack(part).expand(groups, -1) for part in zip(*drawn, strict=True))
        lead = (dim, weights.shape[1]) if kernels == 1 else (kernels, dim, weights.shape[1])
        normal = torch.view_as_complex(torch.randn(*lead, 2, dtype=torch.float64, device="cpu") * 0.5**0.5)
        mixed = weights.repeat(dim // groups, 1) * normal
        dt = torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max))
        self.C = _parameter(mixed.real if real else torch.view_as_real(mixed), dt)
        self.log_dt = nn.Parameter(dt if step == "exp" else dt.exp() + torch.log(-torch.expm1(-dt.exp())))
        self.log_A_real = _parameter((-eigenvalues.real).log(), dt)
        self.A_imag = None if real else _parameter(eigenvalues.imag, dt)

    def forward(self, length: int) -> list[DecayingToeplitz]:
        """One causal matrix ``(1, D, length, length)`` a kernel."""
        dtype = working_dtype(self.C)
        with full_precision(self.C.device):
            raw = self.log_dt.to(dtype).unsqueeze(-1)
            dt = self.time_scale * (raw.exp() if self.step_by == "exp" else F.softplus(raw))
            decay = -self.log_A_real.to(dtype).exp()
            angle = torch.zeros_like(decay) if self.A_imag is None else self.A_imag.to(dtype)
            # Repeated as real numbers: the ONNX exporter knows no repetition of complex ones.
            rate = torch.complex(*(part.repeat(dt.shape[0] // self.groups, 1) for part in (decay, angle)))
            if self.discretization == "zoh":
                poles, inputs = dt * rate, complex_expm1(dt * rate) / rate
            else:
                half = dt * rate / 2
                poles, inputs = _log_bilinear(half), dt / (1 - half)
            pairs = torch.view_as_real(poles).unsqueeze(0)
            weights = torch.view_as_real(2 * (self.C.to(dtype) if self.A_imag is None else to_complex(self.C)) * inputs)
        weights = weights.unsqueeze(0) if weights.dim() == 3 else weights
        return [DecayingToeplitz(pairs, part.unsqueeze(0), length) for part in weights]


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter of these values, of the dtype and on the device of another, in memory of its own."""
    return nn.Parameter(torch.empty(values.shape, dtype=like.dtype, device=like.device).copy_(values))


def complex_expm1(exponent: Tensor) -> Tensor:
    """``exp(z) - 1`` of complex numbers, exact for small ones; in real parts while exporting, for ONNX's exporter."""
    if not exporting():
        return torch.expm1(exponent)
    decay, angle = exponent.real, exponent.imag
    return torch.complex(torch.expm1(decay) * angle.cos() - 2 * (angle / 2).sin().square(), decay.exp() * angle.sin())


def _log_bilinear(half: Tensor) -> Tensor:
    """``log((1 + h) / (1 - h))``, exact for small h too."""
    size = half.abs().square()
    decay = (torch.log1p(size + 2 * half.real) - torch.log1p(size - 2 * half.real)) / 2
    return torch.complex(decay, torch.atan2(half.imag, 1 + half.real) + torch.atan2(half.imag, 1 - half.real))


def _state_spaces(module: S4D, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``S4D`` (models/s4/s4d.py) and of ``S4Block`` with a diagonal kernel (models/s4/s4.py)."""
    ours = {name.removeprefix("layer."): value for name, value in state.items()}
    if (
        "kernel.inv_dt" in ours
    ):  # the full code: a step (H, 1), A = -exp(A_real) - i A_imag, B apart, a leading axis of channels
        ours["D"], ours["kernel.log_dt"] = ours["D"].squeeze(0), ours.pop("kernel.inv_dt").squeeze(-1)
        ours["kernel.log_A_real"] = ours.pop("kernel.A_real")
        inputs, outputs = ours.pop("kernel.B"), ours["kernel.C"]
        inputs = inputs.repeat(1, outputs.shape[1] // inputs.shape[1], *[1] * (inputs.dim() - 2))
        if "kernel.A_imag" in ours:
            ours["kernel.A_imag"] = -ours["kernel.A_imag"]
            ours["kernel.C"] = complex_product(inputs, outputs)
        else:
            ours["kernel.C"] = inputs * outputs
        if module.causal:
            ours["kernel.C"] = ours["kernel.C"].squeeze(0)
    ours = {name.replace("output_linear.0.", "output_linear."): value for name, value in ours.items()}
    if ours["output_linear.weight"].dim() == 3:  # a convolution of one tap
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

    Defaults are those of the minimal published code; ``dt_transform="softplus"``, ``groups`` and the other spectra are
    options of the full one. Its B is absorbed in C here. Not taken over: its experimental forms (DSS's
    discretisation, band limits, sinh steps, a step a mode), and S4 proper, whose state matrix is not diagonal.

    Args:
        d_state: state size N, even unless real.
        causal: look back only. Where it is False, a second kernel of the same A and dt reads later tokens. That one
            starts at lag 1, so that the token itself counts once; the mixer is then no recurrence.
        spectrum: initial A (see :func:`spectrum`).
        discretization: of the continuous system.
        dt_transform: what makes a step of its parameter.
        real: real modes and weights, N of them; then only the real parts of the spectrum count.
        groups: sets of A, which the channels share in turn; None is one a channel.
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
        causal: bool = True,
        spectrum: Literal["lin", "inv", "inv2", "quad", "legs", "real", "rand"] = "lin",
        discretization: Literal["zoh", "bilinear"] = "zoh",
        dt_transform: Literal["exp", "softplus"] = "exp",
        real: bool = False,
        groups: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        if not causal:
            self.traits = replace(type(self).traits, causal=False, recurrent=False)
        super().__init__(dim, grid)
        self.causal = causal
        self.D = nn.Parameter(torch.randn(dim))
        self.kernel = S4DKernel(
            dim,
            d_state,
            1 if causal else 2,
            init=spectrum,
            discretization=discretization,
            step=dt_transform,
            real=real,
            groups=groups,
            dt_min=dt_min,
            dt_max=dt_max,
        )
        self.output_linear = nn.Linear(dim, 2 * dim)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = x.mT.unsqueeze(-1)
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
        """Zeros ``(B, D, N/2, 1, 2)`` (N if real), real pairs, in float32 or float64."""
        if not self.causal:
            raise NotImplementedError("S4D(causal=False) is not recurrent: a token also sees later ones")
        modes = self.kernel.log_A_real
        shape = (batch, self.dim, modes.shape[1], 1, 2)
        return torch.zeros(shape, dtype=working_dtype(modes), device=modes.device)

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        (kernel,), values = self.kernel(x.shape[1]), x.mT.unsqueeze(-1)
        mixed, state = kernel.absorb(values, state, None if mask is None else padding_before(mask))
        return self.merge(mixed + self.D.view(-1, 1, 1) * values, None), state

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        (kernel,) = self.kernel(1)
        mixed, state = kernel.step(x.unsqueeze(-1), state)
        mixed = mixed.to(x.dtype) + (self.D * x).unsqueeze(-1)
        return self.merge(mixed.unsqueeze(2), None).squeeze(1), state

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, causal={self.causal}"
