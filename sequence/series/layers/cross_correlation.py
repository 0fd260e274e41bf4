"""Cross auto-correlation: steps of one sequence read delayed steps of another."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.mixers.auto_correlation import auto_correlation
from matmix.mixers.base import Projected, merge_heads
from matmix.mixers.maps import TokenMap
from sequence.series.published import named, of_library


class CrossCorrelation(TokenMap):
    """``y[t] = W_o sum_i w_i v[(t + delay_i) mod L]``: queries of tokens (B, L, D), the rest of a memory (B, S, D).

    A memory that is longer than L is cut, a shorter one goes on with zeros; then delays are found as in
    ``auto_correlation``. Its matrix is (B, 1, L, L), circulant.

    Args:
        dim: D.
        factor, published: as of the mixer ``auto_correlation``.
    """

    def __init__(self, dim: int, *, factor: float = 1.0, published: bool = False) -> None:
        super().__init__()
        if not factor > 0:
            raise ValueError(f"factor must be positive, got {factor!r}")
        self.dim, self.factor, self.shared_delays = dim, factor, published
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def project(self, x: Tensor, memory: Tensor) -> Projected:
        length, more = x.shape[1], x.shape[1] - memory.shape[1]
        key, values = (
            F.pad(t, (0, 0, 0, more)) if more > 0 else t[:, :length] for t in (self.key(memory), self.value(memory))
        )
        matrix = auto_correlation(self.query(x), key, self.factor, self.shared_delays and self.training)
        return Projected(matrix, values.unsqueeze(1))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        out: Tensor = self.proj(merge_heads(mixed))
        return out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, factor={self.factor}, published={self.shared_delays}"

    @staticmethod
    def _from_published(module: CrossCorrelation, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        found = named(state, "proj", "out_projection")
        for name in ("query", "key", "value"):
            found |= named(state, name, f"{name}_projection")
        return found

    published: ClassVar[dict[str, Any]] = of_library(_from_published.__func__)  # type: ignore[attr-defined]
