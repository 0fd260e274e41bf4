"""What a step gets from its time: hour, weekday and the like, as numbers."""

from __future__ import annotations

from torch import Tensor, nn


class MarkEmbedding(nn.Module):
    """Time features (B, L, K) to steps (B, L, D): one linear layer without a bias."""

    def __init__(self, marks: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(marks, dim, bias=False)

    def forward(self, marks: Tensor) -> Tensor:
        """(B, L, K) to (B, L, D)."""
        embedded: Tensor = self.embed(marks)
        return embedded
