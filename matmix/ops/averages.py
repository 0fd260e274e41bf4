"""Weighted averages of earlier features: how MambaMixer (arXiv 2403.19888, equations 11 and 12) joins its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Mix = Callable[[Tensor], Tensor]


class WeightedAverages(nn.Module):
    """Block l = 1 ... L has a token mixer and then a channel mixer, and each reads sums of all that came before it:

        x_token(l)   = sum_{i < l}  alpha[l, i] y_token(i) + sum_{i < l} beta[l, i]  y_channel(i)
        x_channel(l) = sum_{i <= l} theta[l, i] y_token(i) + sum_{i < l} gamma[l, i] y_channel(i)

    with ``y_token(0) = y_channel(0) = x``: l, l, l + 1 and l scalars, L (2 L + 3) in all. They are plain weights, no
    softmax and no normalisation: the paper has none.

    The paper gives no initialisation. Here each mixer starts with the newest output before it, as in DenseFormer
    (2402.02622), which the paper follows: the token mixer with that of the channel mixer before, ``beta[l, l-1] = 1``,
    the channel mixer with ``theta[l, l] = 1``, all others 0: blocks in a row. The case that the paper names as VMamba,
    which has no channel mixers, is ``alpha[l, l-1] = 1`` and all others 0; ``vmamba_()`` sets it.

    Args:
        depth: L.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a positive integer, got {depth!r}")
        levels = range(1, depth + 1)
        self.alpha, self.beta, self.gamma = (nn.ParameterList(torch.zeros(i) for i in levels) for _ in range(3))
        self.theta = nn.ParameterList(torch.zeros(i + 1) for i in levels)
        with torch.no_grad():
            for newest in (*self.beta, *self.theta):
                newest[-1] = 1

    @torch.no_grad()
    def vmamba_(self) -> WeightedAverages:
        """A chain of the token mixers, in which no channel mixer is heard: ``y_token(L)`` is VMamba's stage."""
        for parameter in self.parameters():
            parameter.zero_()
        for newest in self.alpha:
            newest[-1] = 1
        return self

    def token_input(self, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """What the next token mixer reads, from ``y_token(0 ... l-1)`` and ``y_channel(0 ... l-1)``."""
        level = len(tokens) - 1
        return _sum(self.alpha[level], tokens) + _sum(self.beta[level], channels)

    def channel_input(self, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """What the next channel mixer reads, from ``y_token(0 ... l)`` and ``y_channel(0 ... l-1)``."""
        level = len(channels) - 1
        return _sum(self.theta[level], tokens) + _sum(self.gamma[level], channels)

    def forward(
        self, x: Tensor, token_mixers: Sequence[Mix], channel_mixers: Sequence[Mix]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All blocks: the outputs ``y_token(0 ... L)`` and ``y_channel(0 ... L)``; the last one is the stage's."""
        tokens, channels = [x], [x]
        for token_mixer, channel_mixer in zip(token_mixers, channel_mixers, strict=True):
            tokens.append(token_mixer(self.token_input(tokens, channels)))
            channels.append(channel_mixer(self.channel_input(tokens, channels)))
        return tokens, channels


def _sum(weights: Tensor, features: Sequence[Tensor]) -> Tensor:
    total = weights[0] * features[0]
    for place in range(1, len(features)):  # not by iterating over the weights, which torch.fx cannot follow
        total = torch.addcmul(total, weights[place], features[place])
    return total
