"""Adaptive Fourier neural operator: a small complex perceptron at every frequency, over groups of channels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.affine import Affine
from matmix.matrices.algebra import ColumnCat, Kron, Product, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.fourier import Fourier
from matmix.matrices.gate import Gate
from matmix.matrices.identity import Identity
from matmix.matrices.selection import Selection
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.registry import register
from matmix.ops import fft
from matmix.ops.activations import looked_on
from matmix.ops.fft import complex_linear, hermitian
from matmix.ops.layers import StarReLU
from matmix.ops.linear import linear
from matmix.ops.pieces import pieces
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import known, larger, smaller
from matmix.ops.state_space import inner_width


@register(
    "afno",
    matrix="I + F^-1 shrink (W2 relu W1) F per sample and group of channels",
    cost="O(L D (log L + D / groups))",
    source="NVlabs/AFNO-transformer, okojoalg/dfformer",
    paper="2111.13587, equation 7",
    smallest={"groups": 2},
)
class AFNO(Mixer):
    """``y = x + F^-1 softshrink(W2 relu(W1 F x + b1) + b2)``: token mixing in the frequency domain, 1-D and 2-D.

    F is the orthonormal DFT over the grid; at every frequency the same complex two-layer network, block-diagonal over
    the channels, gives the new coefficients. ReLU and softshrink act on real and imaginary parts apart, which makes
    the map linear over the reals only: the matrix has the tokens times the channels of a group as its axis (channel by
    channel), the groups are its heads. With the gates of both activations given it is exact; its last column
    takes a constant 1 that is appended to the tokens. What is not a real image's spectrum is projected onto those.

    Modes beyond a ``fraction`` of the lowest are not passed on. The published 2-D code takes ``int((L // 2 + 1) *
    fraction)`` columns with L = rows * columns, and all rows; here the count is of the axis itself, for columns and
    rows alike. The published code casts to float32; here float64 stays.

    Args:
        groups: channel groups; must divide the inner width (8 in both published models).
        mlp_ratio: hidden width of a group over its width.
        shrink: threshold of the softshrink, at least 0.
        fraction: of the modes of an axis, lowest first; more than 0, at most 1. At least the constant mode is kept.
        bottleneck: None for AFNO itself; a number puts it into an inverted bottleneck of ``int(bottleneck * dim)``
            channels, ``W_out AFNO(StarReLU(W_in x))`` (the AFNO model of DFFormer: 2).
        published: the published count of kept columns.
    """

    traits = Traits(data_dependent=True, mask="content")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        groups: int = 8,
        mlp_ratio: float = 1.0,
        shrink: float = 0.01,
        fraction: float = 1.0,
        bottleneck: float | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(dim, grid)
        inner = dim if bottleneck is None else inner_width(dim, bottleneck, "bottleneck")
        if inner % groups:
            raise ValueError(f"groups must be a positive divisor of the {inner} inner channels, got {groups!r}")
        width = inner // groups
        wide = inner_width(width, mlp_ratio, "mlp_ratio")
        self.groups, self.width, self.shrink, self.fraction = groups, width, shrink, fraction
        self.published_count = published
        self.pwconv1 = self.act1 = self.pwconv2 = None
        if bottleneck is not None:
            self.pwconv1, self.act1 = nn.Linear(dim, inner, bias=False), StarReLU()
            self.pwconv2 = nn.Linear(inner, dim, bias=False)
        # The first axis holds real and imaginary part.
        self.w1 = nn.Parameter(0.02 * torch.randn(2, groups, width, wide))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, groups, wide))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, groups, wide, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, groups, width))

    def _kept(self, grid: Grid) -> list[tuple[int, int]]:
        """For every axis, how many of the lowest modes from 0 up and how many of those from -1 down are kept."""
        last = grid[-1] // 2 + 1
        length = math.prod(grid) if self.published_count else grid[-1]
        count = _share(length // 2 + 1, self.fraction)
        count = count if self.published_count else larger(1, count)
        kept = [(smaller(last, count), 0)]
        if len(grid) == 2:
            rows = grid[0]
            count = rows if self.published_count else larger(1, _share(rows // 2 + 1, self.fraction))
            ahead = smaller(count, rows)
            kept.insert(0, (ahead, smaller(count - 1, rows - ahead)))
        return kept

    def project(self, x: Tensor, context: Context) -> Projected:
        maps, length = self._maps(x, context), x.shape[1]
        stacked = maps.view(x.shape[0], self.groups, self.width * length)
        one = maps.new_ones(1, 1, 1).expand(x.shape[0], self.groups, 1)
        values = torch.cat((stacked, one), 2).unsqueeze(-1)
        return Projected(self._matrix(values, context.grid), values, length)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, int]:
        # Both gates of the matrix need the frequencies' hidden units, which are the product but for its last step.
        done = [self._mix(piece, context.grid) for piece in pieces(self._maps(x, context), self, 2.0)]
        mixed = torch.cat(done) if len(done) > 1 else done[0]
        return mixed.reshape(x.shape[0], self.groups, self.width * x.shape[1], 1), x.shape[1]

    def _maps(self, x: Tensor, context: Context) -> Tensor:
        """Inner channels ``(B, D, *grid)``: transforms along the last axes are the fast ones."""
        if self.pwconv1 is not None and self.act1 is not None:
            x = drop_padding(linear(self.pwconv1, x, self.act1), context.mask)  # StarReLU does not keep zeros
        return x.mT.contiguous().unflatten(-1, context.grid)

    def _mix(self, maps: Tensor, grid: Grid) -> Tensor:
        """The layer itself on ``(B, D, *grid)``."""
        axes, exact = tuple(range(2, maps.dim())), working_dtype(maps)
        kept = self._kept(grid)
        with full_precision(maps.device):
            spectrum = fft.rfftn(maps.to(exact), dim=axes, norm="ortho")
            half = spectrum.shape[2:]
            low = torch.view_as_real(spectrum)
            for axis, (ahead, back), size in zip(axes, kept, half, strict=True):
                if known(size) and ahead + back < size:
                    low = torch.cat((low.narrow(axis, 0, ahead), low.narrow(axis, size - back, back)), axis)
            count = low.shape[2:-1]
            low = low.reshape(maps.shape[0], self.groups, self.width, math.prod(count), 2)
            hidden = _relu(complex_linear(low, self.w1, self.b1))
            low = F.softshrink(complex_linear(hidden, self.w2, self.b2), self.shrink)
            low = low.reshape(maps.shape[0], maps.shape[1], *count, 2)
            for axis, (ahead, back), size in zip(axes, kept, half, strict=True):
                if not known(size):  # all modes went through the layer
                    place = torch.arange(size, device=low.device).view(*[-1 if a == axis else 1 for a in (*axes, 0)])
                    low = torch.where((place < ahead) | (place >= size - back), low, 0)
                elif ahead + back < size:
                    missing = list(low.shape)
                    missing[axis] = size - ahead - back
                    parts = (low.narrow(axis, 0, ahead), low.new_zeros(missing), low.narrow(axis, ahead, back))
                    low = torch.cat(parts, axis)
            modes = torch.view_as_complex(low)
            # A CPU's inverse transform projects by itself (see hermitian), but not that of a program for other devices.
            whole = low.device.type == "cpu" and not torch.compiler.is_compiling()
            mixed = fft.irfftn(modes if whole else hermitian(modes, grid), grid, dim=axes, norm="ortho")
        return mixed.add_(maps).to(maps.dtype)  # nothing behind it needs the transform's result

    def _matrix(self, values: Tensor, grid: Grid) -> Matrix:
        """The layer as a matrix on ``[channels of a group x tokens; 1]``; frequencies are (channel, part, mode)."""
        length, dtype, device = math.prod(grid), values.dtype, values.device
        each = Identity(length, 1, dtype, device)
        channels = Identity(self.width, 1, dtype, device)
        fourier = Fourier(grid, length**-0.5, dtype=dtype, device=device)
        forward = Affine(Kron(channels, fourier.mT))

        def layer(weight: Tensor, bias: Tensor) -> tuple[Matrix, Tensor]:
            real, imaginary = weight.mT.unbind(0)  # (G, O, I)
            block = torch.stack((torch.stack((real, -imaginary), -1), torch.stack((imaginary, real), -1)), -3)
            # (G, O, out part, I, in part)
            entries = block.flatten(3, 4).flatten(1, 2)
            offset = bias.movedim(0, -1).flatten(1)  # (G, O x part)
            offset = offset.unsqueeze(-1).expand(-1, -1, length).flatten(1)
            return Kron(Dense(entries.unsqueeze(0)), each), offset.unsqueeze(0)

        (first, b1), (second, b2) = layer(self.w1, self.b1), layer(self.w2, self.b2)
        to_hidden = Product((ColumnCat((first, Dense(b1.unsqueeze(-1)))), forward))
        relu = Affine(Gate(to_hidden, values, kind="relu"))
        hidden = (relu, Affine(first, b1), forward)
        to_out = Product((ColumnCat((second, Dense(b2.unsqueeze(-1)))), *hidden))
        shrink = Affine(Gate(to_out, values, kind="softshrink", threshold=self.shrink))
        # The half spectrum stands for the whole: its columns count twice, but for those that mirror themselves.
        weights = self._weights(grid, dtype, device)
        inverse = Kron(channels, Product((fourier, Diagonal(weights.repeat(2).view(1, 1, -1)))))
        mixing = Product((Affine(inverse), shrink, Affine(second, b2), *hidden))
        rows = self.width * length
        skip = Affine(Identity(rows, 1, dtype, device), unit=0.0)
        tokens = torch.arange(rows, device=device).view(1, 1, -1)
        return Product((Selection(tokens, rows + 1, dtype), Sum((skip, mixing))))

    def _weights(self, grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
        """How often every mode of the whole spectrum counts in the inverse transform, ``(L,)``."""
        weights = torch.ones((), dtype=dtype, device=device)
        for (ahead, back), size in zip(self._kept(grid), grid, strict=True):
            modes = torch.arange(size, device=device)
            axis = ((modes < ahead) | (modes >= size - back)).to(dtype)
            weights = weights.unsqueeze(-1) * axis
        columns = torch.arange(grid[-1], device=device)
        before = (2 * columns <= grid[-1]).to(dtype)
        twice = ((columns > 0) & (2 * columns < grid[-1])).to(dtype)
        return (weights * (before + twice)).flatten()

    def merge(self, mixed: Tensor, rest: int) -> Tensor:
        tokens = mixed.reshape(mixed.shape[0], self.groups * self.width, rest).mT
        return tokens if self.pwconv2 is None else linear(self.pwconv2, tokens)

    def extra_repr(self) -> str:
        options = f"groups={self.groups}, shrink={self.shrink}, fraction={self.fraction}"
        return f"{super().extra_repr()}, {options}, published={self.published_count}"

    published: ClassVar[dict[str, Any]] = {
        "NVlabs/AFNO-transformer": lambda module, state: state,
        "okojoalg/dfformer": lambda module, state: state,
    }


def _share(count: int, fraction: float) -> int:
    """A part of a count, rounded down."""
    return int(count * fraction) if known(count) else torch.sym_int(count * fraction)


def _relu(pairs: Tensor) -> Tensor:
    """ReLU on real and imaginary parts, in place where nobody needs them."""
    return F.relu(pairs, inplace=not looked_on(pairs))
