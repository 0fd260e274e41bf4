"""Global filter: one learned frequency response a channel."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from matmix.matrices.circulant import Circulant
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.registry import register
from matmix.ops.fft import hermitian, interpolate_spectrum, resample_spectrum, to_complex
from matmix.ops.layers import StarReLU
from matmix.ops.linear import linear
from matmix.ops.state_space import inner_width


def _gfnet(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("complex_weight", "complex_weights"): value for name, value in state.items()}


@register(
    "global_filter",
    matrix="Circulant per channel",
    cost="O(L D log L), with a bottleneck also O(L D^2)",
    source="raoyongming/GFNet, okojoalg/dfformer",
    paper="2107.00645, equation 6; 2303.03932, GFFormer",
)
class GlobalFilter(Mixer):
    """``y = F^-1 (w * F x)``: a learned circular convolution over the whole grid for every channel.

    Two published forms: GFNet's is the filter alone; GFFormer's puts it into an inverted bottleneck,
    ``y = W2 filter(StarReLU(W1 x))``. The matrix is circulant per (inner) channel and does not depend on the data.

    Learned half spectra are free where real kernels' are not, in their self-conjugate columns; they are projected
    here, which is what the published code computes on a CPU (see ``Circulant.from_spectrum``). The published code
    casts float64 tokens to float32 first; here float64 stays.

    Args:
        bottleneck: None for GFNet's form; a number for GFFormer's (2 there), which has
            ``int(bottleneck * dim)`` inner channels.
    """

    traits = Traits(length="fixed", mask="content")
    published: ClassVar = {"raoyongming/GFNet": _gfnet, "okojoalg/dfformer": lambda module, state: state}

    def __init__(self, dim: int, grid: Grid, *, bottleneck: float | None = None) -> None:
        super().__init__(dim, grid)
        inner = dim if bottleneck is None else inner_width(dim, bottleneck, "bottleneck")
        self.bottleneck, self.inner = bottleneck, inner
        if bottleneck is not None:
            self.pwconv1 = nn.Linear(dim, inner, bias=False)
            self.act1 = StarReLU()
            self.pwconv2 = nn.Linear(inner, dim, bias=False)
        assert self.grid is not None
        half = (*self.grid[:-1], self.grid[-1] // 2 + 1)
        self.complex_weights = nn.Parameter(0.02 * torch.randn(*half, inner, 2))

    def project(self, x: Tensor, context: Context) -> Projected:
        values, spectrum = self._inner(x, context)
        return Projected(Circulant.from_spectrum(spectrum, context.grid), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        if x.device.type != "cpu":
            return super().product(x, context)
        # The inverse transform of a CPU projects by itself (see ``hermitian``), so this is the product with the
        # projected matrix; to project before as well is a tenth of the time on a small image.
        values, spectrum = self._inner(x, context)
        return Circulant(torch.view_as_real(spectrum), context.grid).matmul(values), None

    def _inner(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Values ``(B, D, L, 1)`` and the learned half spectra ``(1, D, *half)``."""
        if self.bottleneck is not None:
            x = drop_padding(linear(self.pwconv1, x, self.act1), context.mask)  # StarReLU does not keep zeros
        values = x.mT.unsqueeze(-1)
        return values, to_complex(self.complex_weights.movedim(-2, 0).unsqueeze(0))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        tokens = merge_heads(mixed)
        return tokens if self.bottleneck is None else linear(self.pwconv2, tokens)

    def resize_(self, grid: Grid, *, method: str = "kernel") -> Self:
        """Adapt the filters to another grid, in place.

        Args:
            grid: the new grid, of as many axes.
            method: ``"kernel"`` keeps the real kernel, padded with zeros or cropped around lag 0; ``"bicubic"`` resizes
                the half spectrum as an image with aligned corners, as GFNet and DFFormer do for fine-tuning.

        Raises:
            ValueError: for another number of axes or an unknown method.
        """
        old = self.grid
        assert old is not None
        if method not in ("kernel", "bicubic"):
            raise ValueError(f"method must be 'kernel' or 'bicubic', got {method!r}")
        super().resize_(grid)
        assert self.grid is not None
        if len(self.grid) != len(old):
            self.grid = old
            raise ValueError(
                f"GlobalFilter has filters over {len(old)} axes, {old}: grid must have as many, got {grid!r}"
            )
        if self.grid != old:
            with torch.no_grad():
                weights = self.complex_weights.detach()
                if method == "bicubic":
                    new = interpolate_spectrum(weights.double(), self.grid)
                else:
                    spectrum = hermitian(to_complex(weights.double().movedim(-2, 0)), old)
                    new = torch.view_as_real(resample_spectrum(spectrum, old, self.grid)).movedim(0, -2)
            self.complex_weights = nn.Parameter(new.to(weights.dtype).contiguous(), self.complex_weights.requires_grad)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bottleneck={self.bottleneck}"
