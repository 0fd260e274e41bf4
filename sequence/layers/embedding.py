"""From raw input to tokens."""

from __future__ import annotations

from torch import Tensor, nn

BERT_EPS = 1e-12
"""Of the norm behind the embedding, in BERT and all that follow it."""


class Patches(nn.Module):
    """Images (B, channels, height, width) to one token for each `size` x `size` patch, row by row: (B, L, D)."""

    def __init__(self, channels: int, dim: int, size: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT


class Stem(nn.Sequential):
    """What embedded tokens with their places pass before the first block: a layer norm (BERT), and a linear layer
    (FNet); either or neither."""

    def __init__(self, dim: int, *, norm: bool = False, projection: bool = False) -> None:
        super().__init__()
        if norm:
            self.norm = nn.LayerNorm(dim, eps=BERT_EPS)
        if projection:
            self.projection = nn.Linear(dim, dim)


def look_up(embedding: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """The rows of an embedding, or a ValueError that says which ids there are."""
    if isinstance(ids, Tensor) and ids.is_meta and not embedding.weight.is_meta:  # PyTorch would make rows of nothing
        raise ValueError(f"{name}: ids must be on {embedding.weight.device} as the embedding is, got {ids.device}")
    try:
        rows: Tensor = embedding(ids)
    except IndexError as error:  # PyTorch's says neither which nor how many there are
        last = embedding.num_embeddings - 1
        what = "token ids" if name == "x" else f"{name} of tokens"
        raise ValueError(f"{name}: {what} must be 0 to {last}, got {int(ids.min())} to {int(ids.max())}") from error
    return rows
