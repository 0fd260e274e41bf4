"""A mixer along the channels of the tokens, in the place of a perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from matmix.mixers import create_mixer


class AlongChannels(nn.Module):
    """Tokens (B, L, D) to the same: each token's D channels are what mixes, the L tokens stand side by side.

    What is a channel to the mixer is a token here, so a matrix a head is one a token where it has L heads.

    Args:
        spec: of the mixer.
        tokens, dim: L and D.
    """

    def __init__(self, spec: str, tokens: int, dim: int) -> None:
        super().__init__()
        self.mixer = create_mixer(spec, tokens, (dim,))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.mixer(x.mT).mT
