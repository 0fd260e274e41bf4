"""Heads: from what was read to answers."""

from __future__ import annotations

from torch import nn

from sequence.layers.block import ACTS


def make_head(width: int, hidden: tuple[int, ...], outputs: int, act: str) -> nn.Module:
    """A linear layer, or several with an activation between them."""
    widths, layers = (width, *hidden), []
    for before, after in zip(widths, hidden, strict=False):
        layers += [nn.Linear(before, after), ACTS[act]()]
    last = nn.Linear(widths[-1], outputs)
    return nn.Sequential(*layers, last) if layers else last


class Tied(nn.Identity):
    """Stands for a head that has the weights of the embedding."""
