"""A small pre-norm MetaFormer encoder: what stands around a mixer in the studies.

    x = embedding(tokens)  [+ position]
    x = x + mixer(norm(x));  x = x + mlp(norm(x))      for each block
    y = head(norm(x)), where a pooled mean is normalised again

Every part draws its initial weights under its own name, so two encoders that differ in their mixer only agree, bit for
bit, in all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from matmix.mixers import create_mixer, layer_specs
from matmix.ops.seed import fork_seed

Head = Literal["pool", "last", "token", "forecast"]


class Encoder(nn.Module):
    """Embedding, blocks, norm and head.

    Args:
        embedding: builds the module that maps the raw input to tokens (B, L, D): `nn.Embedding` for token ids,
            `nn.Linear` for real values (B, L, channels), `Patches` for images.
        mixer: spec of the mixer; a pattern of several is tiled over the depth.
        dim, depth: model width D and number of blocks.
        grid: shape of the token axis, `(L,)` or `(rows, cols)`.
        head: "pool" (mean over real tokens), "last" (last real token) and "token" (each token) give (B, outputs),
            (B, outputs) and (B, L, outputs); "forecast" reads all tokens of a fixed length L at once: (B, outputs).
        outputs: number of classes, logits or forecast steps.
        mlp_ratio: hidden width of the channel MLP over D; 0 leaves the MLP out.
        position: learned position embedding (without it, a mixer must know the order by itself).
        embedding_std: of the initial weights of both embeddings. Small: a block adds more than it finds, so later
            blocks see what earlier ones gathered, and less of the token itself.
        dropout: on the output of each mixer and MLP.
        seed: of the initial weights.
    """

    def __init__(
        self,
        embedding: Callable[[], nn.Module],
        mixer: str,
        *,
        dim: int,
        depth: int,
        grid: tuple[int, ...],
        head: Head,
        outputs: int,
        mlp_ratio: float = 2.0,
        position: bool = False,
        embedding_std: float = 0.2,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if head not in ("pool", "last", "token", "forecast"):
            raise ValueError(f"head must be 'pool', 'last', 'token' or 'forecast', got {head!r}")
        length = torch.Size(grid).numel()
        with fork_seed(seed, "embedding"):
            self.embedding = embedding()
            for parameter in self.embedding.parameters():
                nn.init.normal_(parameter, std=embedding_std) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        self.position = None
        if position:
            with fork_seed(seed, "position"):
                self.position = nn.Parameter(embedding_std * torch.randn(length, dim))
        self.blocks = nn.ModuleList(
            Block(str(spec), dim, grid, mlp_ratio, dropout, seed, f"blocks.{index}")
            for index, spec in enumerate(layer_specs(mixer, depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.read = head
        # The mean of many tokens is small where they differ; at its own scale the head learns in far fewer steps.
        self.pooled_norm = nn.LayerNorm(dim) if head == "pool" else nn.Identity()
        with fork_seed(seed, "head"):
            self.head = nn.Linear(dim * length if head == "forecast" else dim, outputs)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Raw input and `mask` (B, L), True = a real token, to the outputs of the head."""
        x = self.embedding(x)
        if self.position is not None:
            x = x + self.position
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.pooled_norm(pool(self.norm(x), self.read, mask)))


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self, mixer: str, dim: int, grid: tuple[int, ...], mlp_ratio: float, dropout: float, seed: int, name: str
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, grid)
        self.dropout = nn.Dropout(dropout)
        self.mlp = None
        if mlp_ratio:
            self.mlp_norm, hidden = nn.LayerNorm(dim), round(mlp_ratio * dim)
            with fork_seed(seed, f"{name}.mlp"):
                self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        x = x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask))
        if self.mlp is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class Patches(nn.Module):
    """Images (B, channels, height, width) to one token for each `size` x `size` patch, row by row: (B, L, D)."""

    def __init__(self, channels: int, dim: int, size: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT


def pool(x: Tensor, head: Head, mask: Tensor | None) -> Tensor:
    """Tokens (B, L, D) to what the head reads. With a mask, "last" is the last real token, wherever it stands."""
    if head == "pool":
        if mask is None:
            return x.mean(1)
        weight = mask.to(x.dtype).unsqueeze(-1)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
    if head == "last":
        if mask is None:
            return x[:, -1]
        last = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]
    if head == "forecast":
        return (x if mask is None else x * mask.unsqueeze(-1)).flatten(1)
    return x
