"""The embedding of a window, step by step: values, time marks, positions."""

from __future__ import annotations

from torch import Tensor, nn

from sequence.series.layers.marks import MarkEmbedding
from sequence.series.layers.positions import positions
from sequence.series.layers.tokens import CircularConv


class StepEmbedding(nn.Module):
    """``dropout(conv(x) + marks + positions)``: a window (B, L, C) to steps (B, L, D).

    Args:
        channels: C.
        dim: D.
        marks: K time features of a step; 0 for none.
        position: add sinusoidal positions.
        dropout: on the sum.
    """

    def __init__(self, channels: int, dim: int, *, marks: int = 0, position: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.value = CircularConv(channels, dim)
        self.marks = MarkEmbedding(marks, dim) if marks else None
        self.position = position
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Values (B, L, C) and time features (B, L, K), None for none, to (B, L, D)."""
        embedded = self.value(x)
        if marks is not None and self.marks is not None:
            embedded = embedded + self.marks(marks)
        if self.position:
            embedded = embedded + positions(x.shape[1], embedded.shape[2], embedded)
        out: Tensor = self.dropout(embedded)
        return out
