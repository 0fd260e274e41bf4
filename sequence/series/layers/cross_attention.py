"""Cross attention: steps of one sequence read those of another."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Projected, merge_heads, split_heads
from matmix.mixers.maps import TokenMap
from sequence.series.published import of_library

LAYERS = ("query", "key", "value")


class CrossAttention(TokenMap):
    """``W_o softmax(q k^T / sqrt(E)) v``: queries of tokens (B, L, D), keys and values of a memory (B, S, D).

    Its matrix is (B, H, L, S).

    Args:
        dim: D.
        heads: H, a divisor of D.
        dropout: in training, the chance of an entry of the matrix to be left out.
    """

    kind: ClassVar[str] = "cross_attention"

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads}")
        self.dim, self.heads = dim, heads
        self.matrix_dropout = nn.Dropout(dropout).p  # which checks it
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def project(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Projected:
        """Tokens, memory, and (B, S) bool, True = a real token of the memory."""
        query = split_heads(self.query(x), self.heads)
        key, values = (split_heads(layer(memory), self.heads) for layer in (self.key, self.value))
        return Projected(Softmax(query, key, mask), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        out: Tensor = self.proj(merge_heads(mixed))
        return out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, dropout={self.matrix_dropout}"

    @staticmethod
    def _from_published(module: CrossAttention, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """Four projections, each with a bias."""
        names = {name: f"{name}_projection" for name in LAYERS} | {"proj": "out_projection"}
        kinds = ("weight", "bias")
        return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in kinds}

    published: ClassVar[dict[str, Any]] = of_library(_from_published.__func__)  # type: ignore[attr-defined]
