"""FFNified attention: queries, keys and values of attention turned into a convolutional feed-forward network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product, Sum
from matmix.matrices.convolution import Convolution
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.gate import Gate
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.calls import check_axes
from matmix.mixers.registry import register
from matmix.ops.activations import gelu
from matmix.ops.layers import CrossMlp
from matmix.ops.layout import image_of
from matmix.ops.plain import is_plain
from matmix.ops.reparam import BatchNorm, BranchedConv, NormedLinear, convolved, kernel_of, norm_affine, padded_conv


class _Run(NamedTuple):
    value: Tensor  # (B, L, D), what the matrix multiplies, but for its constant
    image: Tensor  # the same as (B, D, rows, columns)
    gated: Tensor  # of the hidden units, zero at padding
    mixed: Tensor
    real: Tensor | None  # (B, 1, rows, columns), the mask


@register(
    "ffnified",
    matrix="T2 diag(Phi(T1 v)) T1 per channel, T Convolution",
    cost="O(L D (D + kernel^axes))",
    source="ysj9909/FFNet",
    paper="2406.02021, equation 4",
    smallest={"kernel": 3, "branches": "strips"},
)
class FFNified(Mixer):
    """``y = T2 gelu(T1 v + b1) + b2`` with ``v = BN(W x)``: depthwise convolutions as keys and values (FFNet).

    Since ``gelu(z) = z Phi(z)``, this is the matrix ``T2 diag(Phi(z)) [T1, b1] + [0, b2]`` a sample and channel; its
    last column takes a constant 1 that is appended to the tokens. The layer itself runs as two convolutions over a
    channels-last view of the tokens.

    Each convolution is a sum of branches, each with a batch norm. Outside of training a forward merges them into one
    kernel (the published code runs them one by one until it is exported), and W with its own. In training the shown
    matrix is that of the batch's statistics, which are functions of the tokens. With a mask these are over real ones.

    Args:
        kernel: taps along every axis, odd.
        variates: for series of several variates, ``dim = variates * width`` (variates the slow axis): v comes from a
            perceptron over variates and width instead of W, its batch norm is over the width, and x is added to y.
        dropout: of the hidden units of that perceptron, and half as many of what it gives; published with 0.3.
        branches: ``"pair"``, the kernel and a 3-tap one; ``"strips"`` (FFNet for segmentation), the kernel, one four
            taps smaller if there is one, and on images a row and a column; ``"plain"``, one convolution with a bias and
            no batch norm. Where absent, as published: ``"pair"`` for 7 taps, else ``"plain"``.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        kernel: int = 7,
        branches: Literal["pair", "strips", "plain"] | None = None,
        variates: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, grid)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be a positive odd integer, got {kernel!r}")
        if branches == "pair" and kernel < 3:
            raise ValueError(f"branches='pair' has a 3-tap branch: kernel must be at least 3, got {kernel}")
        self.axes = 1 if self.grid is None else len(self.grid)
        self.kernel, self.branches = kernel, branches or ("pair" if kernel == 7 else "plain")
        if variates is not None and dim % variates:
            raise ValueError(f"variates must be a positive divisor of dim={dim} or None, got {variates!r}")
        self.variates = variates
        self.fc: nn.Module
        if dropout and variates is None:
            raise ValueError(f"dropout is of the perceptron that variates has: it must be 0 without, got {dropout}")
        if variates is None:
            self.fc = NormedLinear(nn.Linear(dim, dim, bias=False))
        else:
            self.fc = VariateQuery(variates, dim // variates, dropout)
        self.conv1, self.conv2 = self._convolution(), self._convolution()

    def _convolution(self) -> nn.Module:
        k, axes = self.kernel, self.axes
        if self.branches == "plain":
            return padded_conv(self.dim, self.dim, (k,) * axes, bias=True)
        if self.branches == "pair":
            return BranchedConv(self.dim, {"conv": (k,) * axes, "conv1": (3,) * axes})
        sizes = {"conv1": (k,) * axes}
        if k > 4:
            sizes["conv2"] = (k - 4,) * axes
        if axes == 2:
            sizes |= {"strip_conv1": (1, k), "strip_conv2": (k, 1)}
        return BranchedConv(self.dim, sizes)

    def project(self, x: Tensor, context: Context) -> Projected:
        grid, (batch, length) = context.grid, x.shape[:2]
        value, image, gated, _, real = self._run(x, context)
        values = torch.cat((value, value.new_ones(1, 1, 1).expand(batch, 1, self.dim)), 1).mT.unsqueeze(-1)
        size = (self.kernel,) * self.axes
        (k1, b1), (k2, b2) = kernel_of(self.conv1, image, size, real), kernel_of(self.conv2, gated, size, real)

        def column(bias: Tensor) -> Dense:
            return Dense(bias.view(1, -1, 1, 1).expand(-1, -1, length, -1))

        keys = Convolution.centred(k1, grid)
        first = ColumnCat((keys, column(b1)))
        gate = Gate(keys, value.mT.unsqueeze(-1), b1.view(1, -1, 1), context.mask)
        nothing = Diagonal(x.new_zeros(1, 1, 1).expand(-1, self.dim, length))
        matrix = Sum((Product((Convolution.centred(k2, grid), gate, first)), ColumnCat((nothing, column(b2)))))
        return Projected(matrix, values, None if self.variates is None else x)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        # Two convolutions of an image: the matrix would need the first one for its gates, and then again.
        mixed = self._run(x, context).mixed
        return mixed.flatten(2).unsqueeze(-1), None if self.variates is None else x

    def _run(self, x: Tensor, context: Context) -> _Run:
        """The layer itself. Its batch norms are called once, for the matrix too: they follow what they see."""
        grid, mask = context.grid, context.mask
        check_axes(self, grid)
        image_grid = grid if self.axes == 2 else (1, *grid)
        real = None if mask is None else mask.view(mask.shape[0], 1, *image_grid)
        value = drop_padding(self._query(x, mask), mask)
        image = image_of(value, image_grid)
        hidden = convolved(self.conv1, image, real, axes=self.axes)
        gated = F.gelu(hidden) if self._held() else gelu(hidden)
        if real is not None:  # convolution and bias reach into padding
            gated = gated.masked_fill(~real, 0)
        return _Run(value, image, gated, convolved(self.conv2, gated, real, axes=self.axes), real)

    def _held(self) -> bool:
        """Whether a hook or an adapter may keep the first convolution's output: then GELU must not overwrite it."""
        conv = self.conv1
        kind: type[nn.Module] = nn.Conv1d if self.axes == 1 else nn.Conv2d
        return not (conv.is_plain() if isinstance(conv, BranchedConv) else is_plain(conv, kind))

    def _query(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``BN(W x)``, tokens."""
        return self.fc(x, mask) if isinstance(self.fc, (VariateQuery, NormedLinear)) else self.fc(x)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        tokens = mixed.squeeze(-1).mT
        return tokens if rest is None else rest + tokens

    def fuse_(self) -> Self:
        """Put batch norms and branches into one linear map and two convolutions, in place and for good.

        The fused mixer computes what this one computes outside of training, with fewer parameters (those of the
        published tables). It forgets the running statistics: train before, not after.
        """
        with torch.no_grad():
            if isinstance(self.fc, VariateQuery):
                self.fc.fuse_()
            elif isinstance(self.fc, NormedLinear):
                weight, bias = self.fc.folded()
                fused = nn.Linear(self.dim, self.dim, device=weight.device, dtype=weight.dtype)
                fused.weight.copy_(weight)
                fused.bias.copy_(bias)
                self.fc = fused.train(self.training)
            for name in ("conv1", "conv2"):
                part = getattr(self, name)
                if isinstance(part, BranchedConv):
                    setattr(self, name, part.fused())
        return self

    def resize_(self, grid: Grid) -> Self:
        check_axes(self, grid)
        return super().resize_(grid)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel}, branches={self.branches}, variates={self.variates}"

    published: ClassVar[dict[str, Any]] = {"ysj9909/FFNet": lambda module, state: from_published(module, state)}


class VariateQuery(nn.Module):
    """``BN(mlp(x))`` of tokens ``(B, L, variates * width)``: the perceptron widens the variates for every channel of
    the width, then mixes the width for every variate; the batch norm is over the width."""

    def __init__(self, variates: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = CrossMlp(variates, width, dropout=dropout)
        self.dropout = nn.Dropout(dropout / 2)
        self.bn: nn.Module = BatchNorm(width)

    def fuse_(self) -> None:
        """Put the batch norm into the perceptron's second layer, in place and for good."""
        if isinstance(self.bn, BatchNorm):
            mlp, (factor, shift) = self.mlp, norm_affine(self.bn)
            mlp.weight2.copy_(mlp.weight2 * factor.unsqueeze(-1))
            mlp.bias2.copy_(mlp.bias2 * factor + shift)
            self.bn = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mlp, bn = self.mlp, self.bn
        series = self.dropout(mlp(x.unflatten(-1, (mlp.first, mlp.second))))  # (B, L, variates, width)
        if isinstance(bn, nn.Identity):
            return series.flatten(2)
        if not bn.training and is_plain(bn, BatchNorm):
            factor, shift = norm_affine(bn)
            return torch.addcmul(shift.to(x.dtype), series, factor.to(x.dtype)).flatten(2)
        series = series.permute(0, 3, 1, 2)
        normed = bn(series) if mask is None else bn(series, mask[:, None, :, None])
        return normed.permute(0, 2, 3, 1).flatten(2)


def from_published(mixer: FFNified, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of ysj9909/FFNet: for images W is a 1 x 1 convolution, for series the perceptron is two grouped ones."""
    if mixer.variates is None:
        return {k: v.flatten(1) if k in ("fc.c.weight", "fc.weight") else v for k, v in state.items()}
    shapes = {f"fc.mlp.{name}": value.shape for name, value in mixer.fc.mlp.named_parameters()}  # type: ignore[union-attr]
    ours = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if part in ("ffnpw1", "ffnpw2"):
            name = f"fc.mlp.{leaf}{part[-1]}"
            value = value.reshape(shapes[name]) if value.numel() == shapes[name].numel() else value
        elif part == "norm":
            name = f"fc.bn.{leaf}"
        elif part in ("dw1", "dw2"):
            name = f"conv{part[-1]}.{leaf}"
        ours[name] = value
    return ours
