"""The block of TimesNet: a series folded to the rows of its strongest periods, and convolved as an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.affine import Affine
from matmix.matrices.algebra import Kron, Product, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.gate import Gate
from matmix.matrices.identity import Identity
from matmix.mixers.base import Projected
from matmix.mixers.maps import TokenMap


class Inception(nn.Module):
    """The mean of convolutions of 1 x 1, 3 x 3, 5 x 5, ...: run as the one convolution that it is."""

    def __init__(self, dim: int, out: int, branches: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(nn.Conv2d(dim, out, 2 * reach + 1, padding=reach) for reach in range(branches))
        part: Any
        for part in self.kernels:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(part.bias)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel (O, I, k, k) and bias (O,)."""
        parts: list[Any] = list(self.kernels)
        most = len(parts) - 1
        weight = sum((F.pad(part.weight, (most - at,) * 4) for at, part in enumerate(parts[:-1])), parts[-1].weight)
        bias = sum((part.bias for part in parts[:-1]), parts[-1].bias)
        return weight / len(parts), bias / len(parts)


class TimesBlock(TokenMap):
    """``x + sum_i w_i unfold(conv(gelu(conv(fold(x, period_i)))))``: steps (B, T, D) to the same.

    The periods are T // f of the frequencies f whose amplitude, the mean over channels, is largest, and the weights are
    the softmax of these amplitudes. A series is continued with zeros to a whole number of periods. Its matrix,
    (B, 1, T D + 1, T D + 1), mixes steps and channels (step by step, channels side by side) and has one more
    coordinate, always 1, for the biases; the ``x +`` comes behind it.

    Args:
        dim, hidden: channels outside and between the convolutions.
        periods: how many.
        branches: convolutions of each of both, of 1, 3, 5, ... places a side.
        published: one choice of periods for the batch, by the mean of its amplitudes: what becomes of a series then
            depends on the others, in evaluation too. By default each has its own.
    """

    def __init__(self, dim: int, hidden: int, *, periods: int = 5, branches: int = 6, published: bool = False) -> None:
        super().__init__()
        if periods < 1 or branches < 1:
            raise ValueError(f"periods and branches must be at least 1, got {periods} and {branches}")
        self.dim, self.periods, self.shared_periods = dim, periods, published
        self.first, self.second = Inception(dim, hidden, branches), Inception(hidden, dim, branches)

    def found(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Periods, each once, and the weight of each in every sample (B,), 0 where it is not one of its own."""
        batch, length, _ = x.shape
        if length // 2 < self.periods:
            raise ValueError(f"{self.periods} periods need at least {2 * self.periods} steps, got {length}")
        amplitude = torch.fft.rfft(x if x.dtype == torch.float64 else x.float(), dim=1).abs().mean(2)  # (B, F)
        ranked = amplitude.detach().index_fill(1, torch.zeros(1, dtype=torch.long, device=x.device), -1)
        if self.shared_periods:
            ranked = ranked.mean(0, keepdim=True).expand(batch, -1)
        chosen = ranked.topk(self.periods, 1).indices
        weight, period = amplitude.gather(1, chosen).softmax(1).to(x.dtype), length // chosen
        return [(p, torch.where(period == p, weight, 0).sum(1)) for p in period.unique().tolist()]

    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        (first, second), mixed = (part.merged() for part in (self.first, self.second)), torch.zeros_like(x)
        for period, weight in self.found(x):
            own = weight.nonzero().squeeze(1)  # a softmax is never 0
            image = self._folded(x[own], period).permute(0, 3, 1, 2)
            image = F.gelu(F.conv2d(image, *first, padding="same"))
            image = F.conv2d(image, *second, padding="same").permute(0, 2, 3, 1).flatten(1, 2)
            mixed = mixed.index_add(0, own, weight[own, None, None] * image[:, : x.shape[1]])
        return mixed.flatten(1)[:, None, :, None], x

    @staticmethod
    def _folded(x: Tensor, period: int) -> Tensor:
        """(B, T, D) to (B, rows, period, D), zeros at the end."""
        return F.pad(x, (0, 0, 0, -x.shape[1] % period)).unflatten(1, (-1, period))

    def project(self, x: Tensor) -> Projected:
        values = torch.cat((x.flatten(1), x.new_ones(len(x), 1)), 1)[:, None, :, None]
        parts = [self._by(period, x).scale(weight[:, None, None, None]) for period, weight in self.found(x)]
        return Projected(Sum.of(*parts), values, x)

    def _by(self, period: int, x: Tensor) -> Matrix:
        """The matrix of one period for all samples."""
        (first, offset), (second, last) = (part.merged() for part in (self.first, self.second))
        length, rows = x.shape[1], -(-x.shape[1] // period)
        whole = torch.eye(rows * period, length, dtype=x.dtype, device=x.device)[None, None]
        longer, shorter = (Kron(Dense(m), _identity(self.dim, x)) for m in (whole, whole.mT))
        into = Product.of(folded_convolution(first, rows, period), longer)
        out = Product.of(shorter, folded_convolution(second, rows, period))
        offset = offset.repeat(rows * period)[None, None]
        gate = Gate(into, x.flatten(1)[:, None, :, None], offset)
        return Product.of(Affine(out, last.repeat(length)[None, None]), Affine(gate), Affine(into, offset))

    def merge(self, mixed: Tensor, rest: Tensor) -> Tensor:
        return rest + mixed[:, 0, : rest[0].numel(), 0].view_as(rest)


def _identity(size: int, like: Tensor) -> Identity:
    return Identity(size, 1, like.dtype, like.device)


def folded_convolution(weight: Tensor, rows: int, columns: int) -> Matrix:
    """A convolution of all channels over an image, zeros around it, as a matrix over places and channels.

    ``sum_d (rows shifted by d) (x) (row d of the kernel along the columns)``: (1, 1, rows columns O, rows columns I)
    of a kernel (O, I, k, k), k odd, channels side by side at each place.
    """
    out, channels, size, _ = weight.shape
    reach, here = size // 2, torch.arange(columns, device=weight.device)
    tap = here - here.unsqueeze(1) + reach  # (column out, column in) -> the tap that joins them
    inside = (tap >= 0) & (tap < size)
    terms: list[Matrix] = []
    for shift in range(-min(reach, rows - 1), min(reach, rows - 1) + 1):
        along = weight[:, :, shift + reach][..., tap.clamp(0, size - 1)].masked_fill(
            ~inside, 0
        )  # (O, I, column, column)
        band = along.permute(2, 0, 3, 1).reshape(columns * out, columns * channels)
        eye = torch.ones(rows - abs(shift), dtype=weight.dtype, device=weight.device).diag(shift)
        terms.append(Kron(Dense(eye[None, None]), Dense(band[None, None])))
    return Sum.of(*terms) if len(terms) > 1 else terms[0]
