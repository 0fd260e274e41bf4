"""Small layers that several mixers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.activations import gelu, looked_on
from matmix.ops.depthwise import convolve
from matmix.ops.gated import by_kernel
from matmix.ops.layout import image_of
from matmix.ops.masks import continued
from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype


class StarReLU(nn.Module):
    """``scale * relu(x)^2 + bias`` with two learnable scalars (MetaFormer baselines, arXiv 2210.13452, StarReLU).

    ``scale`` and ``bias`` have the shape [1] and start at 1 and 0, as in the published code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        positive, scale, bias = F.relu(x), self.scale, self.bias
        if scale.dtype != x.dtype:
            return scale * positive.square() + bias
        if looked_on(x, scale):
            return torch.addcmul(bias, scale, positive.square())
        return positive.square_().mul_(scale).add_(bias)


class GatedRMSNorm(nn.Module):
    """RMS normalisation of a gated signal, over groups of channels (Mamba-2, arXiv 2405.21060; Hydra, 2407.09941).

    Args:
        dim: channels D.
        groups: each of D / groups channels is normalised by itself.
        gate_first: ``norm(x silu(gate)) weight`` (Mamba-2), else ``norm(x) weight silu(gate)`` (Hydra).
        eps: added to the mean square.
    """

    def __init__(self, dim: int, groups: int = 1, gate_first: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"groups must be a positive divisor of {dim} channels, got {groups}")
        self.weight = nn.Parameter(torch.ones(dim))
        self.groups, self.gate_first, self.eps = groups, gate_first, eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """``(..., D)`` and a gate of that shape to ``(..., D)``, in the dtype of ``x``; float32 at least inside."""
        if by_kernel(x, gate, self.weight, self.groups):
            from matmix.ops.gated_triton import gated_rms_norm

            return gated_rms_norm(x, gate, self.weight, self.groups, self.gate_first, self.eps)
        dtype = working_dtype(x)
        wide, gate = x.to(dtype), F.silu(gate.to(dtype))
        if not looked_on(x, gate, self.weight) and self.weight.dtype == dtype:
            return self._in_place(wide, gate).to(x.dtype)
        if self.gate_first:
            wide = wide * gate
        grouped = wide.unflatten(-1, (self.groups, wide.shape[-1] // self.groups))
        scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        wide = (grouped * scale).flatten(-2) * self.weight
        return (wide if self.gate_first else wide * gate).to(x.dtype)

    def _in_place(self, wide: Tensor, gate: Tensor) -> Tensor:
        """The same, written into the gate, which is ours, as far as that goes."""
        if self.gate_first:
            wide = gate.mul_(wide)
        grouped = wide.unflatten(-1, (self.groups, wide.shape[-1] // self.groups))
        size = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True)
        scale = torch.rsqrt(size.square_().div_(grouped.shape[-1]).add_(self.eps))
        if self.gate_first:
            grouped.mul_(scale)
            return wide.mul_(self.weight)
        return gate.mul_(self.weight).unflatten(-1, grouped.shape[-2:]).mul_(scale).mul_(grouped).flatten(-2)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, gate_first={self.gate_first}, eps={self.eps}"


class ShortConv(nn.Module):
    """A short filter along the tokens for every channel, ``y[i] = bias + sum_k weight[k] x[i + k - reach]``.

    Tokens outside the sequence count as zeros, so padding that is zeroed changes no real token. As a convolution over
    a ``1 x L`` image in channels-last layout, which tokens are without a copy (several times as fast as ``conv1d``).

    Args:
        dim: channels C.
        size: taps K.
        causal: reach = K - 1, no output sees a later token; else centred, reach = K // 2 and K must be odd.
        bias: whether there is one.
    """

    def __init__(self, dim: int, size: int, causal: bool = True, bias: bool = True) -> None:
        super().__init__()
        if size < 1 or (not causal and size % 2 == 0):
            raise ValueError(
                f"d_conv of a {'causal' if causal else 'centred'} filter must be positive"
                f"{'' if causal else ' and odd'}, got {size}"
            )
        bound = size**-0.5  # as nn.Conv1d draws them
        self.weight = nn.Parameter(torch.empty(dim, 1, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None
        self.size, self.causal = size, causal

    def forward(self, x: Tensor, silu: bool = False, segments: Tensor | None = None) -> Tensor:
        """``(B, L, C)`` to ``(B, L, C)``, and SiLU if wanted; no tap reaches into another of ``segments (B, L)``."""
        reach = self.size - 1 if self.causal else self.size // 2
        if segments is not None:
            margins, length = (reach, self.size - 1 - reach), x.shape[1]
            near, owner = F.pad(x, (0, 0, *margins)), F.pad(segments, margins, value=-1)
            y = torch.zeros((), dtype=x.dtype, device=x.device) if self.bias is None else self.bias
            for tap in range(self.size):
                other = (owner[:, tap : tap + length] != segments).unsqueeze(-1)
                y = y + self.weight[:, 0, tap] * near[:, tap : tap + length].masked_fill(other, 0)
            return F.silu(y) if silu else y
        image = image_of(x, x.shape[1:2])
        return convolve(image, self.weight.unsqueeze(2), self.bias, (0, reach), silu).squeeze(2).mT

    def absorb(
        self, x: Tensor, mask: Tensor | None, window: Tensor | None, silu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """``forward`` of tokens that follow on a window (None: zeros), and the window after them.

        Padding before the first real token of ``mask (B, L)`` does not part the two.
        """
        missing = max(0, self.size - x.shape[1])
        if window is None:
            seen, mixed = F.pad(x, (0, 0, missing, 0)), self(x, silu)
        else:
            seen = continued(window[..., 1:].mT, x, mask)
            mixed = self(seen, silu)[:, self.size - 1 :]
        return mixed, seen[:, seen.shape[1] - self.size :].mT.contiguous()

    def step(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """The output ``(B, C)`` for one more token ``(B, C)`` of a causal filter, and the window with it."""
        window = torch.cat((window[..., 1:], x.unsqueeze(-1)), -1)
        y = (window * self.weight[:, 0]).sum(-1)
        return (y if self.bias is None else y + self.bias), window

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, size={self.size}, causal={self.causal}, bias={self.bias is not None}"


class CrossMlp(nn.Module):
    """A two-layer perceptron with GELU over two axes ``(..., P, Q)``, one an axis: the first layer widens P, for every
    q on its own; the second mixes what stands at every p over Q and the added width (FFNet for series).

    Args:
        first: size of P.
        second: size of Q.
        mlp_ratio: hidden units for every entry, at least 1.
        dropout: of hidden units, in front of GELU.
    """

    def __init__(self, first: int, second: int, mlp_ratio: int = 2, *, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(mlp_ratio, int) or mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be a positive integer, got {mlp_ratio!r}")

        def draw(fan_in: int, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

        self.first, self.second, self.mlp_ratio = first, second, mlp_ratio
        self.weight1 = draw(first, second, first * mlp_ratio, first)  # (Q, (P, e), P)
        self.bias1 = draw(first, second, first * mlp_ratio)
        self.weight2 = draw(second * mlp_ratio, first, second, mlp_ratio * second)  # (P, Q, (e, Q))
        self.bias2 = draw(second * mlp_ratio, first, second)
        self.dropout = nn.Dropout(dropout)

    def hidden(self, x: Tensor) -> Tensor:
        """``(..., P, Q)`` to ``(..., Q, (P, e))``, in front of dropout and GELU."""
        return torch.einsum("...pq,qop->...qo", x, self.weight1) + self.bias1

    def forward(self, x: Tensor) -> Tensor:
        """``(..., P, Q)`` to ``(..., P, Q)``."""
        hidden = self.dropout(self.hidden(x))
        hidden = gelu(hidden) if is_plain(self.dropout, nn.Dropout) else F.gelu(hidden)  # a hook may keep what it saw
        hidden = hidden.unflatten(-1, (self.first, self.mlp_ratio))
        weight = self.weight2.unflatten(-1, (self.mlp_ratio, self.second))
        return torch.einsum("...qpe,pkeq->...pk", hidden, weight) + self.bias2

    def extra_repr(self) -> str:
        return f"first={self.first}, second={self.second}, mlp_ratio={self.mlp_ratio}"
