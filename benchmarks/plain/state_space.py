"""Plain forms of the state space mixers: the scan token by token (S6), segsum by chunks (Mamba-2, Hydra), a long FFT
convolution (S4D)."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain.forms import FORMS, Grid, gated_norm, name_of, plain, rms_norm, short_conv
from matmix.ops.orders import scan_order


@plain("s4d")
def s4d(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The minimal S4D: the kernel from its Vandermonde matrix, an FFT of twice the length, GELU, GLU."""
    kernel, length = m.kernel, x.shape[1]
    dt = kernel.log_dt.exp().unsqueeze(-1)
    rate = -kernel.log_A_real.exp() + 1j * kernel.A_imag
    weight = torch.view_as_complex(kernel.C) * (torch.exp(rate * dt) - 1) / rate
    powers = torch.exp((rate * dt).unsqueeze(-1) * torch.arange(length, device=x.device))
    taps = 2 * torch.einsum("dn, dnl -> dl", weight, powers).real
    u = x.transpose(1, 2)
    spectrum = torch.fft.rfft(u, 2 * length) * torch.fft.rfft(taps, 2 * length)
    y = torch.fft.irfft(spectrum, 2 * length)[..., :length] + m.D.unsqueeze(-1) * u
    return F.glu(m.output_linear(F.gelu(y).transpose(1, 2)), -1)


@plain("s6")
def s6(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Mamba's reference: discretise every token, then the recurrence token by token."""
    signal, gate = m.in_proj(x).chunk(2, -1)
    u = F.silu(short_conv(m.conv1d, signal))
    y = selected(u, m.x_proj.weight, m.dt_proj.weight, m.dt_proj.bias, m.A_log) + m.D * u
    return m.out_proj(y * F.silu(gate))


def selected(u: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor) -> Tensor:
    """The selection of Mamba and its scan, of convolved tokens ``(B, L, D)``."""
    rank, states = dt_proj.shape[1], A_log.shape[1]
    low, write, read = F.linear(u, x_proj).split((rank, states, states), -1)
    return selective_scan(u, F.softplus(F.linear(low, dt_proj, dt_bias)), -A_log.exp(), write, read)


def selective_scan(u: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """``S = exp(dt A) S + dt B u, y = C S``: u and dt ``(B, L, D)``, A ``(D, N)``, B and C ``(B, L, N)``."""
    decay = torch.exp(step.unsqueeze(-1) * rate)
    new = (step * u).unsqueeze(-1) * write.unsqueeze(2)
    state, out = torch.zeros_like(new[:, 0]), []
    # Taken apart once: the gradient of an index a token would be L tensors of the full size.
    for a, b, c in zip(decay.unbind(1), new.unbind(1), read.unbind(1), strict=True):
        state = a * state + b
        out.append(torch.einsum("bdn, bn -> bd", state, c))
    return torch.stack(out, 1)


@plain("vim")
def vim(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Algorithm 1: Mamba both ways, each with its own convolution and selection."""
    signal, gate = m.in_proj(x).chunk(2, -1)
    u = F.silu(short_conv(m.conv1d, signal))
    y = selected(u, m.x_proj.weight, m.dt_proj.weight, m.dt_proj.bias, m.A_log) + m.D * u
    u = F.silu(short_conv(m.conv1d_b, signal.flip(1)))
    back = selected(u, m.x_proj_b.weight, m.dt_proj_b.weight, m.dt_proj_b.bias, m.A_b_log) + m.D_b * u
    y = (y + back.flip(1)) * F.silu(gate)
    return m.out_proj(y / 2 if m.divide else y)


@plain("ss2d")
@plain("selective_token")
def ss2d(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """VMamba, section 4.2: scans along rows and columns, forward and back, added."""
    signal, *gate = m.in_proj(x).split(m.inner, -1)
    rows = grid[0] if len(grid) == 2 else 1
    image = rearrange(signal, "b (r c) d -> b d r c", r=rows)
    u = rearrange(F.silu(m.conv2d(image)), "b d r c -> b (r c) d")
    rates, skips = m.A_logs.chunk(len(m.orders)), m.Ds.chunk(len(m.orders))
    y = torch.zeros_like(u)
    for i, name in enumerate(m.orders):
        order = scan_order(name, grid, x.device)
        way = u[:, order]
        way = selected(way, m.x_proj_weight[i], m.dt_projs_weight[i], m.dt_projs_bias[i], rates[i]) + skips[i] * way
        y = y + way[:, order.argsort()]
    y = y if m.out_norm is None else m.out_norm(y)
    return m.out_proj(y * F.silu(gate[0]) if gate else y)


@plain("channels")
@plain("selective_channel")
def channels(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The plain form of the inner mixer on the channels of every token."""
    places = x.reshape(-1, m.dim // m.width, m.width)
    return FORMS[name_of(m.mixer)](m.mixer, places, (places.shape[1],)).reshape(x.shape)


@plain("scan")
def scan(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """The plain form of the inner mixer along every order."""
    total = torch.zeros_like(x)
    for i, name in enumerate(m.orders):
        order, part = scan_order(name, grid, x.device), m.parts[i % len(m.parts)]
        total = total + FORMS[name_of(part)](part, x[:, order], (x.shape[1],))[:, order.argsort()]
    return total / len(m.orders)


@plain("ssd")
def ssd(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Mamba-2: the minimal SSD listing of the paper around its layer."""
    gate, signal, raw = m.in_proj(x).split(m.sizes[2:], -1)
    inner = m.heads * m.head_dim
    u, write, read = F.silu(short_conv(m.conv1d, signal)).split((inner, m.d_state, m.d_state), -1)
    step = F.softplus(raw + m.dt_bias)
    u = rearrange(u, "b l (h p) -> b l h p", h=m.heads)
    y = ssd_minimal(u * step.unsqueeze(-1), -m.A_log.exp() * step, write, read)
    y = y + m.D.unsqueeze(-1) * u
    return m.out_proj(gated_norm(m.norm, y.flatten(2), gate))


def ssd_minimal(x: Tensor, a: Tensor, write: Tensor, read: Tensor, chunk: int = 64) -> Tensor:
    """Listing 1 of the Mamba-2 paper: x ``(B, L, H, P)``, a ``(B, L, H)``, B and C ``(B, L, N)`` or one each head."""
    length, fill = x.shape[1], -x.shape[1] % chunk
    if write.dim() == 3:  # shared by the heads
        write, read = (repeat(t, "b l n -> b l h n", h=x.shape[2]) for t in (write, read))
    if fill:
        x, write, read = (F.pad(t, (0, 0, 0, 0, 0, fill)) for t in (x, write, read))
        a = F.pad(a, (0, 0, 0, fill))
    x, a, write, read = (rearrange(t, "b (c l) ... -> b c l ...", l=chunk) for t in (x, a, write, read))
    a = rearrange(a, "b c l h -> b h c l")
    upto = a.cumsum(-1)
    decay = torch.exp(segsum(a))
    diagonal = torch.einsum("bclhn, bcshn, bhcls, bcshp -> bclhp", read, write, decay, x)
    to_end = torch.exp(upto[..., -1:] - upto)
    states = torch.einsum("bclhn, bhcl, bclhp -> bchpn", write, to_end, x)
    states = torch.cat((torch.zeros_like(states[:, :1]), states), 1)
    between = torch.exp(segsum(F.pad(upto[..., -1], (1, 0))))
    states = torch.einsum("bhzc, bchpn -> bzhpn", between, states)[:, :-1]
    across = torch.einsum("bclhn, bchpn, bhcl -> bclhp", read, states, torch.exp(upto))
    return rearrange(diagonal + across, "b c l h p -> b (c l) h p")[:, :length]


@plain("mamba3")
def mamba3(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Mamba-3, section 3: each half of the trapezoid is an SSD, of the tokens and of those before them."""
    gate, u, write, read, raw, rate, share, angles = m.in_proj(x).split(m.sizes, -1)
    step, share = F.softplus(raw + m.dt_bias), torch.sigmoid(share)
    a = -(rate.clamp(min=0) + 1 / (1 - rate.clamp(max=0))).clamp(min=m.floor) * step
    angle = ((math.pi * torch.tanh(angles)).unsqueeze(2) * step.unsqueeze(-1)).cumsum(1)  # (B, L, H, S)
    write = _turned(rms_norm(write, m.B_norm.weight, 1e-5).unsqueeze(2) + m.B_bias.squeeze(1), angle)
    read = _turned(rms_norm(read, m.C_norm.weight, 1e-5).unsqueeze(2) + m.C_bias.squeeze(1), angle)
    u = rearrange(u, "b l (h p) -> b l h p", h=m.heads)
    before, write_before = (F.pad(t, (0, 0, 0, 0, 1, -1)) for t in (u, write))
    y = ssd_minimal(u * (share * step).unsqueeze(-1), a, write, read)
    y = y + ssd_minimal(before * ((1 - share) * step * a.exp()).unsqueeze(-1), a, write_before, read)
    return m.out_proj((y + m.D.unsqueeze(-1) * u).flatten(2) * F.silu(gate))


def _turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Neighbours as points of a plane, the first S of them turned."""
    pairs = vectors.unflatten(-1, (-1, 2))
    turning, still = pairs[..., : angle.shape[-1], :], pairs[..., angle.shape[-1] :, :]
    first, second = turning.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
    return torch.cat((turned, still), -2).flatten(-2)


def segsum(a: Tensor) -> Tensor:
    """Sums over runs of tokens, ``-inf`` above the diagonal."""
    size = a.shape[-1]
    a = repeat(a, "... d -> ... d e", e=size)
    a = a.masked_fill(~torch.ones(size, size, dtype=torch.bool, device=a.device).tril(-1), 0)
    return a.cumsum(-2).masked_fill(~torch.ones(size, size, dtype=torch.bool, device=a.device).tril(0), -torch.inf)


def both_ways(m: Any, u: Tensor, raw: Tensor, forth: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor]) -> Tensor:
    """Hydra, section 3: the SSD listing on the sequence and on its mirror image, each shifted by one token.

    Values ``(B, L, H, P)``, raw steps ``(B, L, 2 H)``, B and C ``(B, L, N)`` of each way.
    """
    step_f, step_b = F.softplus(raw + m.dt_bias.repeat(2)).chunk(2, -1)
    rate = -m.A_log.exp()
    ahead = ssd_minimal(u * step_f.unsqueeze(-1), rate * step_f, *forth)
    behind = ssd_minimal((u * step_b.unsqueeze(-1)).flip(1), (rate * step_b).flip(1), *(t.flip(1) for t in back))
    return F.pad(ahead, (0, 0, 0, 0, 1, -1)) + F.pad(behind.flip(1), (0, 0, 0, 0, -1, 1))


@plain("hydra")
def hydra(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Section 3: both ways and a diagonal."""
    gate, signal, raw = m.in_proj(x).split(m.sizes, -1)
    u, write_f, read_f, write_b, read_b = F.silu(short_conv(m.conv1d, signal)).split(m.inner_sizes, -1)
    diagonal = m.fc_D(u) + m.D
    u = rearrange(u, "b l (h p) -> b l h p", h=m.heads)
    y = both_ways(m, u, raw, (write_f, read_f), (write_b, read_b)) + u * diagonal.unsqueeze(-1)
    return m.out_proj(gated_norm(m.norm, y.flatten(2), gate))


@plain("matrix_mixer")
def matrix_mixer(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Hydra's block with the quasiseparable matrix, whose two ways share B and C."""
    inner = m.matrix_mixer
    gate, signal, raw = m.in_proj(x).split(m.sizes, -1)
    u, write, read = F.silu(short_conv(m.conv1d, signal)).split((m.sizes[0], *inner.streams), -1)
    diagonal = inner.fc_D(u) + inner.D
    u = rearrange(u, "b l (h p) -> b l h p", h=m.heads)
    y = both_ways(inner, u, raw, (write, read), (write, read)) + u * diagonal.unsqueeze(-1)
    return m.out_proj(gated_norm(m.norm, y.flatten(2), gate))
