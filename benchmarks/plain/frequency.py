"""Plain forms of the mixers on the Fourier transform, as their published code has them."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain.forms import Grid, plain, star_relu


@plain("fnet")
def fnet(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """Equation 3: the real part of one complex FFT over tokens and channels."""
    image = x.unflatten(1, grid)
    return torch.fft.fftn(image, dim=tuple(range(1, image.dim()))).real.flatten(1, -2)


def _filtered(x: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Multiply the half spectrum of tokens, ``(B, *half, D)``, by weights that broadcast to it."""
    axes = tuple(range(1, 1 + len(grid)))
    spectrum = torch.fft.rfftn(x.unflatten(1, grid), dim=axes, norm="ortho") * weight
    return torch.fft.irfftn(spectrum, s=grid, dim=axes, norm="ortho").flatten(1, -2)


@plain("global_filter")
def global_filter(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """GFNet, equation 6."""
    return _filtered(x, torch.view_as_complex(m.complex_weights), grid)


@plain("dynamic_filter")
def dynamic_filter(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """DFFormer, equation 5."""
    routing = F.linear(x.mean(1), m.reweight.fc1.weight)
    routing = F.linear(star_relu(m.reweight.act, routing), m.reweight.fc2.weight)
    routing = routing.unflatten(-1, (m.filters, -1)).softmax(1).to(torch.complex64)
    axes = "uv"[: len(grid)]
    weight = torch.einsum(f"bfc,{axes}f->b{axes}c", routing, torch.view_as_complex(m.complex_weights))
    x = star_relu(m.act1, m.pwconv1(x))
    return m.pwconv2(_filtered(x, weight, grid))


@plain("aff")
def aff(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """AFFNet, equation 4: channels first, a complex perceptron on parts, a skip."""
    axes = tuple(range(2, 2 + len(grid)))
    spectrum = torch.fft.rfftn(x.transpose(1, 2).unflatten(2, grid), dim=axes, norm="ortho")
    parts = rearrange(spectrum.flatten(2), "b (g c) k -> b g c k", g=m.groups)

    def product(z: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bgik, gio -> bgok", z, weight)

    act = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}[m.act]
    w1, b1, w2, b2 = m.w1, m.b1.unsqueeze(-1), m.w2, m.b2.unsqueeze(-1)
    real = act(product(parts.real, w1[0]) - product(parts.imag, w1[1]) + b1[0])
    imag = act(product(parts.imag, w1[0]) + product(parts.real, w1[1]) + b1[1])
    mask = torch.stack(
        (
            product(real, w2[0]) - product(imag, w2[1]) + b2[0],
            product(imag, w2[0]) + product(real, w2[1]) + b2[1],
        ),
        -1,
    )
    mask = torch.view_as_complex(F.softshrink(mask, m.shrink)).reshape(spectrum.shape)
    return x + torch.fft.irfftn(mask * spectrum, s=grid, dim=axes, norm="ortho").flatten(2).transpose(1, 2)


@plain("afno")
def afno(m: Any, x: Tensor, grid: Grid) -> Tensor:
    """AFNO, equation 7: channels last, a complex perceptron on parts, a skip."""
    axes = tuple(range(1, 1 + len(grid)))
    spectrum = torch.fft.rfftn(x.unflatten(1, grid), dim=axes, norm="ortho").unflatten(-1, (m.groups, m.width))

    def product(z: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("...gi, gio -> ...go", z, weight)

    w1, b1, w2, b2 = m.w1, m.b1, m.w2, m.b2
    real = F.relu(product(spectrum.real, w1[0]) - product(spectrum.imag, w1[1]) + b1[0])
    imag = F.relu(product(spectrum.imag, w1[0]) + product(spectrum.real, w1[1]) + b1[1])
    out = torch.stack(
        (
            product(real, w2[0]) - product(imag, w2[1]) + b2[0],
            product(imag, w2[0]) + product(real, w2[1]) + b2[1],
        ),
        -1,
    )
    out = torch.view_as_complex(F.softshrink(out, m.shrink)).flatten(-2)
    return x + torch.fft.irfftn(out, s=grid, dim=axes, norm="ortho").flatten(1, -2)
