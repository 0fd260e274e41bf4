"""Matrix classes that are wrong in one way each, and ``Filter``, the correct one that they are made from."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from matmix.matrices import Diagonal, Matrix, Product
from matmix.mixers import Grid
from matmix.ops import fft
from matmix.ops.cost import Cost


class Filter(Matrix):
    """The correct twin: a causal filter, ``M[i, j] = kernel[i - j]`` for ``j <= i``."""

    kernel: Tensor  # (B or 1, H, L)

    properties: ClassVar = frozenset({"causal", "toeplitz"})

    @property
    def shape(self) -> Any:
        batch, heads, length = self.kernel.shape
        return (batch, heads, length, length)

    def _convolve(self, kernel: Tensor, values: Tensor, size: int) -> Tensor:
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        spectrum = fft.rfft(kernel.to(wide), n=size).unsqueeze(-1)
        mixed = fft.irfft(spectrum * fft.rfft(values.to(wide), n=size, dim=2), n=size, dim=2)
        return mixed[:, :, : values.shape[2]].to(values.dtype)

    def _matmul(self, values: Tensor) -> Tensor:
        return self._convolve(self.kernel, values, 2 * values.shape[2])

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._convolve(self.kernel, values.flip(2), 2 * values.shape[2]).flip(2)

    def to_dense(self) -> Tensor:
        place = torch.arange(self.kernel.shape[-1], device=self.device)
        gap = place[:, None] - place
        return self.kernel[..., gap.clamp(min=0)].masked_fill(gap < 0, 0)

    def diagonal(self) -> Tensor:
        return self.kernel[..., :1].expand(self.kernel.shape)

    def cost(self, width: int) -> Cost:
        size, count = 2 * self.kernel.shape[-1], self.kernel.shape[0] * self.kernel.shape[1]
        steps = math.ceil(5 * size * math.log2(size))
        return Cost(count * steps * (1 + 2 * width), count * size * self.kernel.itemsize * (1 + 2 * width))

    @classmethod
    def example(cls, grid: Grid, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, math.prod(grid), dtype=dtype))


class WrapsAround(Filter):
    """Forgets to pad: the end of the sequence reaches its beginning."""

    def _matmul(self, values: Tensor) -> Tensor:
        return self._convolve(self.kernel, values, values.shape[2])


class WritesIntoValues(Filter):
    """Scales the values in place."""

    def _matmul(self, values: Tensor) -> Tensor:
        return super()._matmul(values.mul_(1.5)) / 1.5


class AppliesItselfTransposed(Filter):
    """``rmatmul`` that is ``matmul``."""

    def _rmatmul(self, values: Tensor) -> Tensor:
        return self._matmul(values)


class ForgetsToSwap(Filter):
    """``mT`` of a matrix that is not symmetric, which returns itself."""

    @property
    def mT(self) -> Self:
        return self


class KernelForDiagonal(Filter):
    """The first column where the diagonal belongs."""

    def diagonal(self) -> Tensor:
        return self.kernel


class Saturates(Filter):
    """Not linear in the values."""

    def _matmul(self, values: Tensor) -> Tensor:
        return super()._matmul(values.tanh())


class PermutesBackwards(Filter):
    """``P M P^T`` instead of ``P^T M P``."""

    def permuted(self, index: Tensor) -> Product:
        return super().permuted(index.argsort())


class IgnoresMask(Filter):
    """A mask that masks the rows only."""

    def masked(self, mask: Tensor) -> Any:
        return Product.of(Diagonal(mask.to(self.kernel.dtype).unsqueeze(1)), self)


class StacksInReverse(Filter):
    """The other's heads first."""

    def cat_heads(self, *others: Matrix) -> Any:
        return others[0].cat_heads(self)


class KeepsASpectrum(Filter):
    """Derives state when it is made; a matrix that is rebuilt from its leaves has none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spectrum", fft.rfft(self.kernel, n=2 * self.kernel.shape[-1]))

    def _matmul(self, values: Tensor) -> Tensor:
        size = 2 * values.shape[2]
        mixed = fft.irfft(self.spectrum.unsqueeze(-1) * fft.rfft(values, n=size, dim=2), n=size, dim=2)
        return mixed[:, :, : values.shape[2]]


class OptionAsData(Filter):
    """An option that is not a static field, and so is a leaf."""

    size: int = 0


class Detaches(Filter):
    """Cuts the gradient of its kernel."""

    def _matmul(self, values: Tensor) -> Tensor:
        return self._convolve(self.kernel.detach(), values, 2 * values.shape[2])


class Free(Filter):
    """Says that it costs nothing."""

    def cost(self, width: int) -> Cost:
        return Cost(0, 0)


class CostsTheSame(Filter):
    """Says that the width does not matter."""

    def cost(self, width: int) -> Cost:
        return Cost(10**6, 10**6)


class SinglePrecision(Filter):
    """Computes in float32 whatever it is given."""

    def _matmul(self, values: Tensor) -> Tensor:
        return self._convolve(self.kernel.float(), values.float(), 2 * values.shape[2]).to(values.dtype)


class HalfSpectrum(Filter):
    """Multiplies in the dtype of the values, bfloat16 too."""

    def _matmul(self, values: Tensor) -> Tensor:
        products = self.to_dense().unsqueeze(-1) * values.unsqueeze(2)
        total = products[..., 0, :]
        for column in range(1, values.shape[2]):
            total = total + products[..., column, :]
            total = total + 40 * total - 40 * total  # rounds away what a running sum in half precision loses
        return total


class AlwaysSingle(Filter):
    """An example of its own choice of dtype."""

    @classmethod
    def example(cls, grid: Grid, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        return cls(torch.randn(batch, heads, math.prod(grid), dtype=torch.float32))


class OwnBatchOnly(Filter):
    """Reshapes values to the batch that its kernel has."""

    def _matmul(self, values: Tensor) -> Tensor:
        batch = self.kernel.shape[0]
        return super()._matmul(values.reshape(batch, *values.shape[1:]))


class Normalises(Filter):
    """Looks at the largest value, which an empty batch lacks."""

    def _matmul(self, values: Tensor) -> Tensor:
        size = values.abs().max()
        return super()._matmul(values / size) * size


class TakesAnything(Filter):
    """No check: values that are too short count as padded."""

    def matmul(self, values: Tensor) -> Tensor:
        return self._matmul(values)

    def rmatmul(self, values: Tensor) -> Tensor:
        return self._rmatmul(values)


class Branches(Filter):
    """Asks the values which way to go."""

    def _matmul(self, values: Tensor) -> Tensor:
        if float(values.sum()) > 0:
            return super()._matmul(values)
        return -super()._matmul(-values)


WRONG_MATRICES: list[tuple[str, type[Matrix], str]] = [
    ("product", WrapsAround, "matmul (fast path): off by"),
    ("product", WritesIntoValues, "matmul (dense path): off by"),
    ("transposed_product", AppliesItselfTransposed, "rmatmul (fast path): off by"),
    ("transpose", ForgetsToSwap, "mT: to_dense: off by"),
    ("diagonal", KernelForDiagonal, "diagonal: off by"),
    ("linear", Saturates, "M (u - 2 v): off by"),
    ("algebra", PermutesBackwards, "M.permuted(order): to_dense"),
    ("algebra", IgnoresMask, "M.masked(mask): to_dense"),
    ("algebra", StacksInReverse, "M.cat_heads(N): to_dense"),
    ("tree", KeepsASpectrum, "has no attribute 'spectrum'"),
    ("tree", OptionAsData, "leaves are not all tensors"),
    ("gradient", Detaches, "gradient of matmul for tensor 0: off by"),
    ("cost", Free, "for a product that writes"),
    ("cost", CostsTheSame, "twice the columns go from"),
    ("dtypes", SinglePrecision, "float64: product: off by"),
    ("dtypes", HalfSpectrum, "float16: product: off by"),
    ("dtypes", AlwaysSingle, "has dtype torch.float32"),
    ("batches", OwnBatchOnly, "is invalid for input of size"),
    ("batches", Normalises, "max(): Expected reduction dim"),
    ("refuses", TakesAnything, "takes values of shape"),
    ("compiles", Branches, "data-dependent"),
]
"""(law, class that it must fail, what the law must say); ``Filter`` passes them all."""
