"""Weighted averages of earlier features: how MambaMixer (arXiv 2403.19888, equations 11 and 12) joins its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

Block = Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]
"""A block: its token mixer's input, and the function from that mixer's output to the channel mixer's input, to both
outputs."""


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
        self.depth = depth
        # Bare parameters, level after level: a list of them would be a module that nobody calls, and what is offloaded
        # stays away until its module is called.
        for name, more in EXTRA.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(_start(depth, more))))
        self._newest("beta", "theta")

    @torch.no_grad()
    def _newest(self, *names: str) -> None:
        """Every level of these weights takes the newest output alone."""
        for name in names:
            for level in range(self.depth):
                self.level(name, level)[-1] = 1

    @torch.no_grad()
    def vmamba_(self) -> WeightedAverages:
        """A chain of the token mixers, in which no channel mixer is heard: ``y_token(L)`` is VMamba's stage."""
        for parameter in self.parameters():
            parameter.zero_()
        self._newest("alpha")
        return self

    def level(self, name: str, level: int) -> Tensor:
        """The weights ``"alpha"``, ``"beta"``, ``"theta"`` or ``"gamma"`` of block ``level + 1``, a view."""
        start, more = _start(level, EXTRA[name]), EXTRA[name]
        weights: Tensor = getattr(self, name)
        return weights[start : start + level + 1 + more]

    def token_input(self, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """What the next token mixer reads, from ``y_token(0 ... l-1)`` and ``y_channel(0 ... l-1)``."""
        level = len(tokens) - 1
        return _sum(self.level("alpha", level), tokens) + _sum(self.level("beta", level), channels)

    def channel_input(self, tokens: Sequence[Tensor], channels: Sequence[Tensor], newest: Tensor) -> Tensor:
        """What the next channel mixer reads, from these and ``y_token(l)``."""
        level = len(tokens) - 1
        return _sum(self.level("theta", level), [*tokens, newest]) + _sum(self.level("gamma", level), channels)

    def forward(self, x: Tensor, blocks: Iterable[Block]) -> tuple[list[Tensor], list[Tensor]]:
        """All blocks: the outputs ``y_token(0 ... L)`` and ``y_channel(0 ... L)``; the last one is the stage's."""
        tokens, channels = [x], [x]
        for block in blocks:
            # Copies of the lists: a block that is recomputed for its gradient asks again when they have grown.
            join = partial(self.channel_input, tuple(tokens), tuple(channels))
            token, channel = block(self.token_input(tokens, channels), join)
            tokens.append(token)
            channels.append(channel)
        return tokens, channels


EXTRA = {"alpha": 0, "beta": 0, "theta": 1, "gamma": 0}
"""How many more weights than outputs of channel mixers a level has."""


def _start(level: int, more: int) -> int:
    """How many weights stand before those of a level."""
    return level * (level + 1) // 2 + more * level


def _sum(weights: Tensor, features: Sequence[Tensor]) -> Tensor:
    total = weights[0] * features[0]
    for place in range(1, len(features)):  # not by iterating over the weights, which torch.fx cannot follow
        total = torch.addcmul(total, weights[place], features[place])
    return total
