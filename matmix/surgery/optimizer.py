"""The parameters of an optimizer, when modules change places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from matmix.ops.marks import undecayed


@dataclass
class Exchange:
    """Old parameters out of an optimizer, with their state; new ones in. ``undo`` turns it round."""

    optimizer: Optimizer
    old: list[tuple[nn.Parameter, int, int]] = field(default_factory=list)  # with its group and its place there
    new: list[nn.Parameter] = field(default_factory=list)
    state: dict[nn.Parameter, Any] = field(default_factory=dict)

    def undo(self) -> None:
        """The old parameters in their places again, and what the optimizer had noted of them."""
        _remove(self.optimizer, self.new)
        for parameter, group, at in self.old:  # in rising order: each finds the places before it filled
            self.optimizer.param_groups[group]["params"].insert(at, parameter)
        for parameter, state in self.state.items():
            self.optimizer.state[parameter] = state


def exchange(optimizer: Optimizer, old: Iterable[nn.Parameter], new: nn.Module) -> Exchange:
    """Old parameters go, with their state, and the new ones come into their group.

    Where the old ones stood in several groups, those that weight decay leaves alone come into the one without decay.
    New ones come into the first group if there were no old ones to be trained (pooling has none), and not at all if
    they are frozen.
    """
    gone = {id(p): p for p in old}
    places = [
        (p, group, at)
        for group, one in enumerate(optimizer.param_groups)
        for at, p in enumerate(one["params"])
        if id(p) in gone
    ]
    done = Exchange(optimizer, places, [p for p in new.parameters() if p.requires_grad])
    groups = sorted({group for _, group, _ in places}) or [0]
    bare = [g for g in groups if not optimizer.param_groups[g].get("weight_decay")]
    rest = [g for g in groups if g not in bare]
    done.state = {p: optimizer.state.pop(p) for p, _, _ in places if p in optimizer.state}
    _remove(optimizer, [p for p, _, _ in places])
    spared = undecayed(new)
    for name, p in new.named_parameters():
        if p.requires_grad:
            light = bool(bare) and (p.dim() < 2 or name in spared)
            target = (bare if light or not rest else rest)[0]
            optimizer.param_groups[target]["params"].append(p)
    return done


def _remove(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    gone = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for p in parameters:
        optimizer.state.pop(p, None)
