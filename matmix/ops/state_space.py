"""What the state space mixers share: heads, steps and rates, and the reading of a learned initial state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.marks import spare
from matmix.ops.precision import working_dtype


def inner_width(dim: int, factor: float, option: str = "expand") -> int:
    """``int(factor * dim)``, the width of what is within a mixer; the error names the option.

    Raises:
        ValueError: if that is not 1 or more.
    """
    width = int(factor * dim)
    if width < 1:
        raise ValueError(f"{option} must leave a channel, {option} * {dim} of at least 1, got {option}={factor!r}")
    return width


def head_width(channels: int, head_dim: int | None, groups: int, origin: str) -> int:
    """Width of a head: the one asked for, else the largest divisor of ``channels`` up to 64.

    Args:
        channels: that the heads share.
        head_dim: width asked for, or None.
        groups: groups that the heads must fill evenly.
        origin: how ``channels`` came about, for the message.

    Raises:
        ValueError: if the width does not divide the channels, or the groups the heads.
    """
    if head_dim is None:
        widths = (w for w in range(min(64, channels), 0, -1) if channels % w == 0)
        head_dim = next((w for w in widths if channels // w % groups == 0), 1)
    if not isinstance(head_dim, int) or head_dim < 1 or channels % head_dim:
        divisors = ", ".join(str(w) for w in range(1, channels + 1) if channels % w == 0)
        raise ValueError(f"head_dim must divide {origin} = {channels} (one of {divisors}), got {head_dim!r}")
    if groups < 1 or channels // head_dim % groups:
        raise ValueError(f"groups must divide the {channels // head_dim} heads ({origin} / head_dim), got {groups!r}")
    return head_dim


def step_bias(count: int, smallest: float, largest: float, floor: float) -> Tensor:
    """Biases ``(count,)`` whose softplus is log-uniform in [smallest, largest] and at least ``floor``."""
    if not 0 < smallest <= largest or floor < 0:
        raise ValueError(f"need 0 < dt_min <= dt_max and dt_init_floor >= 0, got {smallest}, {largest}, {floor}")
    step = torch.exp(torch.empty(count).uniform_(math.log(smallest), math.log(largest))).clamp(min=floor)
    return step + torch.log(-torch.expm1(-step))  # softplus, inverted without overflow


def add_dynamics(
    module: nn.Module,
    heads: int,
    *,
    step: tuple[float, float, float] = (0.001, 0.1, 1e-4),
    rate: tuple[float, float] = (1.0, 1.0),
    skips: int | None = None,
    state: tuple[int, int] | None = None,
) -> None:
    """Give a module the parameters of a state space a head, all without weight decay.

    ``dt_bias`` and ``A_log`` ``(H,)``, ``D``, and where there is one ``init_states`` ``(H, W, N)``.

    Args:
        module: gets the parameters.
        heads: number of heads H.
        step: smallest and largest initial step, log-uniform, and the floor under them.
        rate: smallest and largest initial rate, uniform.
        skips: numbers in D; None is one a head.
        state: width W and size N of a learned state before the first token.
    """
    low, high = rate
    if not 0 < low <= high:
        raise ValueError(f"A_init_range must be 0 < low <= high, got {rate!r}")
    start = {
        "dt_bias": step_bias(heads, *step),
        "A_log": (torch.empty(heads).uniform_(low, high) if low < high else torch.full((heads,), low)).log(),
        "D": torch.ones(heads if skips is None else skips),
        "init_states": None if state is None else torch.zeros(heads, *state),
    }
    for name, value in start.items():
        module.register_parameter(name, None if value is None else nn.Parameter(value))
    spare(module, start)


def steps(raw: Tensor, bias: Tensor, limit: tuple[float, float], mask: Tensor | None) -> Tensor:
    """Step sizes ``(B, L, H)``: softplus, clamped to ``limit``, 0 where masked; float32 at least.

    A step of 0 neither decays nor writes, so masked tokens leave the state as it is.
    """
    dtype = working_dtype(raw, bias)
    raw = raw.to(dtype) + bias.to(dtype)
    # Compilers get the layout of softplus' gradient wrong when it is transposed; it is the quicker one.
    traced = torch.compiler.is_compiling()
    step = torch.logaddexp(raw, raw.new_zeros(())) if traced else F.softplus(raw, threshold=40.0)
    if limit != (0.0, math.inf):
        step = step.clamp(*limit)
    return step if mask is None else step.masked_fill(~mask.unsqueeze(-1), 0)


def check_limit(limit: tuple[float, float]) -> tuple[float, float]:
    """Bounds of a step as floats."""
    low, high = limit
    if not 0 <= low <= high:
        raise ValueError(f"dt_limit must be 0 <= low <= high, got {limit!r}")
    return float(low), float(high)


def initial_reading(outputs: Tensor, log_decay: Tensor) -> Tensor:
    """What row i reads of the state before the first token, ``C_i exp(a_0 + ... + a_i)``: ``(B, H, L, N)``.

    As N more columns of the matrix, whose values are the state: a learned state is mixed in like any token.

    Args:
        outputs: C, ``(B, G, L, N)``.
        log_decay: a, ``(B, H, L)``.
    """
    reach = log_decay.double().cumsum(-1).exp().to(outputs.dtype)
    return reach.unsqueeze(-1) * outputs.repeat_interleave(log_decay.shape[1] // outputs.shape[1], 1)
