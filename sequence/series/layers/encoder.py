"""The encoder of the time-series transformers: post-norm blocks around any mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.spec import layer_specs
from sequence.layers.block import Act, Block, BlockOptions
from sequence.layers.norms import normed


class SeriesEncoder(nn.Module):
    """``depth`` blocks ``norm(x + mixer(x))``, ``norm(x + mlp(x))``, and a norm at the end.

    Args:
        mixer: its spec; a pattern of several is tiled over the depth.
        dim, depth, hidden: model width D, blocks, hidden units of their perceptrons.
        grid: shape of the token axis.
        act: activation of the perceptrons.
        dropout: on what mixer and perceptron give, and on the hidden units.
        norm: the norm at the end; a layer norm where absent.
        seed: of the initial weights, which every part draws under its own name (see ``new_seed``).
    """

    def __init__(
        self,
        mixer: str,
        dim: int,
        depth: int,
        hidden: int,
        grid: tuple[int, ...],
        *,
        act: Act = "gelu",
        dropout: float = 0.0,
        norm: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options = block_options(dim, hidden, act, dropout)
        self.blocks = nn.ModuleList(
            Block(str(spec), dim, grid, options, seed, f"encoder.{at}")
            for at, spec in enumerate(layer_specs(mixer, depth))
        )
        self.norm = nn.LayerNorm(dim) if norm is None else norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        for block in self.blocks:
            x = block(x, mask)
        return normed(self.norm, x, mask)


def block_options(dim: int, hidden: int, act: Act, dropout: float) -> BlockOptions:
    """The block of the published encoders: post-norm, dropout behind both branches and on the hidden units."""
    return BlockOptions(mlp_ratio=hidden / dim, act=act, prenorm=False, dropout=dropout, hidden_dropout=dropout)


def new_seed() -> int:
    """A seed for the parts of a model, from torch's generator: one part may then be another, the rest the same."""
    return int(torch.randint(2**31, (), device="cpu"))


def attention_spec(dim: int, heads: int, dropout: float, *, causal: bool = False) -> str:
    """The attention of the published encoders: biases everywhere, dropout of its matrix.

    Raises:
        ValueError: for heads that do not divide dim.
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"heads must be a positive divisor of dim={dim}, got {heads!r}")
    options = f"heads={heads}, head_dim={dim // heads}, qkv_bias=True, proj_bias=True, dropout={dropout!r}"
    return f"attention({options}{', causal=True' if causal else ''})"
