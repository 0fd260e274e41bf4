"""Dynamic filter: each channel's global filter is a mix of a few learned ones, chosen by the image itself."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from matmix.matrices.circulant import Circulant
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.calls import check_axes, check_grid
from matmix.mixers.registry import register
from matmix.ops.fft import hermitian, interpolate_spectrum, resample_spectrum, to_complex
from matmix.ops.layers import StarReLU
from matmix.ops.linear import linear
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.state_space import inner_width

_ACTS: dict[str, type[nn.Module]] = {"star_relu": StarReLU, "gelu": nn.GELU, "relu": nn.ReLU}


@register(
    "dynamic_filter",
    matrix="Circulant per sample and channel",
    cost="O(L D (log L + D))",
    source="okojoalg/dfformer",
    paper="2303.03932, equation 5",
    smallest={"filters": 2, "mlp_ratio": 1.0},
)
class DynamicFilter(Mixer):
    """``y = W2 F^-1 diag(sum_k r_k F_k) F StarReLU(W1 x)`` a channel of the inner width (DFFormer).

    The K complex filters ``F_k`` are shared by all channels; a small MLP on the mean token gives each channel its
    convex combination ``r``. The mix of Hermitian filters is Hermitian, so that K spectra are projected onto those of
    real kernels and not one a channel. The published code casts to float32 for the FFT; here float64 stays float64.

    The transform runs over all positions of the grid. With a mask, padding is zeros to it and does not count in the
    mean token, but the circle is still the whole grid: a padded sequence is not the trimmed one.

    Args:
        expand: inner width over ``dim``.
        filters: number K of filters.
        mlp_ratio: hidden width of the MLP of the coefficients over ``dim``.
        act: the activation after ``W1`` (the coefficients always use StarReLU).
        resize: how filters go to another grid. ``"kernel"`` keeps the impulse response, padded or cropped;
            ``"bicubic"`` interpolates the half spectrum as an image with aligned corners, as published.
        built: a grid to keep the filters on; then every forward resizes them to the grid it gets (the published dense
            prediction backbones, with ``resize="bicubic"``), and the mixer is of any length.
    """

    traits = Traits(data_dependent=True, length="fixed", mask="content")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2.0,
        filters: int = 4,
        mlp_ratio: float = 0.25,
        act: Literal["star_relu", "gelu", "relu"] = "star_relu",
        resize: Literal["kernel", "bicubic"] = "kernel",
        built: Grid | None = None,
    ) -> None:
        if built is not None:
            self.traits = replace(type(self).traits, length="any")
        super().__init__(dim, grid)
        inner, hidden = inner_width(dim, expand), inner_width(dim, mlp_ratio, "mlp_ratio")
        self.filters, self.resize = filters, resize
        self.built = None if built is None else check_grid(built, self.traits, type(self).__name__, "built")
        home = self.grid if self.built is None else self.built
        assert home is not None
        self.axes = len(home)
        if self.grid is not None and len(self.grid) != self.axes:
            raise ValueError(f"built must have as many axes as grid={self.grid}, got {built!r}")
        self.pwconv1 = nn.Linear(dim, inner, bias=False)
        self.act1 = _ACTS[act]()
        self.reweight = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(dim, hidden, bias=False),
                act=StarReLU(),
                fc2=nn.Linear(hidden, filters * inner, bias=False),
            )
        )
        self.complex_weights = nn.Parameter(0.02 * torch.randn(*_half(home), filters, 2))
        self.pwconv2 = nn.Linear(inner, dim, bias=False)

    def project(self, x: Tensor, context: Context) -> Projected:
        grid, mask = context.grid, context.mask
        check_axes(self, grid)
        values = drop_padding(linear(self.pwconv1, x, self.act1), mask)
        mean = x.mean(1) if mask is None else x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        weights = self.reweight(mean).unflatten(-1, (self.filters, -1))  # (B, K, inner)
        spectra = torch.view_as_real(self._spectra(grid))  # (K, *half, 2)
        with full_precision(x.device):
            mix = weights.to(working_dtype(weights)).softmax(1)
            spectrum = mix.mT.to(spectra.dtype) @ spectra.flatten(1)
        matrix = Circulant(spectrum.unflatten(-1, spectra.shape[1:]), grid)
        return Projected(matrix, values.mT.unsqueeze(-1))

    def _spectra(self, grid: Grid) -> Tensor:
        """The K half spectra of real kernels on this grid, complex ``(K, *half)``."""
        home = self.grid if self.built is None else self.built
        assert home is not None
        return hermitian(self._moved(home, grid).movedim(-1, 0), grid)

    def _moved(self, old: Grid, new: Grid) -> Tensor:
        """The filters on another grid, complex ``(*half, K)``."""
        weight = self.complex_weights.to(working_dtype(self.complex_weights))
        if old == new:
            return to_complex(weight)
        if self.resize == "bicubic":
            return to_complex(interpolate_spectrum(weight, new))
        spectra = hermitian(to_complex(weight).movedim(-1, 0), old)
        return resample_spectrum(spectra, old, new).movedim(0, -1)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.pwconv2, merge_heads(mixed))

    def resize_(self, grid: Grid) -> Self:
        """Carry the filters to another grid by the rule ``resize``; with ``built`` they stay where they are."""
        old = self.grid
        check_axes(self, grid)
        super().resize_(grid)
        assert self.grid is not None
        if self.built is None and self.grid != old:
            assert old is not None
            weight = self.complex_weights
            with torch.no_grad():
                moved = torch.view_as_real(self._moved(old, self.grid)).to(weight.dtype).contiguous()
            self.complex_weights = nn.Parameter(moved, weight.requires_grad)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, filters={self.filters}, resize={self.resize}, built={self.built}"

    published: ClassVar[dict[str, Any]] = {"okojoalg/dfformer": lambda module, state: state}


def _half(grid: Grid) -> Grid:
    return (*grid[:-1], grid[-1] // 2 + 1)
