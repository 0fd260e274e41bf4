"""What a law is run on: a class or a mixer, at stated sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.matrices.base import Matrix, all_classes
from matmix.mixers.base import Grid, Mixer
from matmix.ops.seed import fork_seed

_T = TypeVar("_T")


@dataclass(frozen=True)
class MatrixCase:
    """A matrix class at stated sizes; ``make`` gives its example, always the same one."""

    cls: type[Matrix]
    grid: Grid = (3, 5)
    heads: int = 2
    batch: int = 2
    width: int = 3
    seed: int = 0
    device: str = "cpu"

    def make(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> Matrix:
        # Some classes hold no tensor and state their device: the example is made there, not moved there.
        with fork_seed(self.seed, self.cls.__qualname__), torch.device(self.device):
            return self.cls.example(self.grid, self.heads, self.batch if batch is None else batch, dtype)

    def random(self, *shape: int, dtype: torch.dtype = torch.float64, name: str = "values") -> Tensor:
        """Standard normal numbers; the same for one name and shape."""
        with fork_seed(self.seed, f"{name}{shape}"):
            return torch.randn(shape, dtype=torch.float64).to(self.device, dtype)

    def values(self, matrix: Matrix, *, transposed: bool = False) -> Tensor:
        """Values that the matrix (or its transpose) can multiply, in its dtype; not contiguous on purpose."""
        batch, heads, rows, columns = matrix.shape
        tokens = rows if transposed else columns
        heads = self.heads if heads == 1 else heads
        batch = self.batch if batch == 1 else batch
        return self.random(batch, heads, self.width, tokens, dtype=matrix.dtype).mT

    def __str__(self) -> str:
        sizes = f"grid={self.grid}, heads={self.heads}, batch={self.batch}, width={self.width}"
        return f"{sizes}, seed={self.seed}{_on(self.device)}"


@dataclass(frozen=True)
class MixerCase:
    """A mixer at stated sizes; ``build`` gives it in generic position, always with the same weights."""

    factory: Callable[[int, Grid], Mixer]
    dim: int = 8
    grid: Grid = (3, 5)
    batch: int = 2
    seed: int = 0
    device: str = "cpu"  # where it runs; weights and tokens are drawn on the CPU, so they are the same everywhere

    @property
    def length(self) -> int:
        return math.prod(self.grid)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Training off and on; off alone for one number a channel, which has no variance for a batch norm."""
        return (False, True) if self.batch * self.length > 1 else (False,)

    def on(self, grid: Grid, batch: int | None = None) -> MixerCase:
        """The same mixer at another size."""
        return replace(self, grid=grid, batch=self.batch if batch is None else batch)

    def flat(self) -> MixerCase:
        """The same mixer on a sequence of as many tokens, if it takes sequences."""
        return self.on((self.length,)) if 1 in self.build().traits.dims else self

    def build(self, dtype: torch.dtype = torch.float64, seed: int | None = None) -> Mixer:
        """The mixer in eval mode, its floating parameters moved a little.

        An initialisation may be special (a gate at 0 hides everything behind it), and a law over special weights
        says nothing about trained ones.
        """
        with fork_seed(self.seed if seed is None else seed, "mixer"):
            mixer = self.factory(self.dim, self.grid).to(torch.float64)
            with torch.no_grad():
                for parameter in mixer.parameters():
                    if parameter.is_floating_point():
                        parameter.add_(0.05 * torch.randn_like(parameter))
        return mixer.to(self.device, dtype).eval()

    def tokens(self, dtype: torch.dtype = torch.float64, name: str = "tokens", length: int | None = None) -> Tensor:
        """Standard normal tokens ``(B, L, D)``; the same for one name and shape."""
        shape = (self.batch, self.length if length is None else length, self.dim)
        with fork_seed(self.seed, f"{name}{shape}"):
            return torch.randn(shape, dtype=torch.float64).to(self.device, dtype)

    def __str__(self) -> str:
        return f"dim={self.dim}, grid={self.grid}, batch={self.batch}, seed={self.seed}{_on(self.device)}"


def _on(device: str) -> str:
    return "" if device == "cpu" else f", on {device}"


def cast(tree: _T, dtype: torch.dtype) -> _T:
    """A pytree with its floating tensors in another dtype; complex ones in the matching complex dtype."""
    wide = {torch.float64: torch.complex128}.get(dtype, torch.complex64)

    def leaf(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if value.is_complex():
            return value.to(wide)
        return value.to(dtype) if value.is_floating_point() else value

    return pytree.tree_map(leaf, tree)


@contextmanager
def dense_up_to(columns: int) -> Iterator[None]:
    """Inside, every matrix class takes its dense product up to this many columns (0: the fast one always)."""
    classes: list[type[Matrix]] = [Matrix, *all_classes()]  # type: ignore[type-abstract]
    owners = [cls for cls in classes if "dense_below" in vars(cls)]
    before = [(cls, cls.dense_below) for cls in owners]
    try:
        for cls in owners:
            cls.dense_below = columns
        yield
    finally:
        for cls, value in before:
            cls.dense_below = value
