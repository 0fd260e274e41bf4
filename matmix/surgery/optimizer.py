"""The parameters of an optimizer, when modules change places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from matmix.ops.marks import undecayed


class Gone(NamedTuple):
    """A parameter that an optimizer has lost: where it stood, and what the optimizer had noted of it."""

    parameter: nn.Parameter
    group: int
    at: int
    state: dict[str, Any] | None


@dataclass
class Exchange:
    """Old parameters out of an optimizer, new ones in; ``undo`` turns it round, in any order of exchanges."""

    optimizer: Optimizer
    new: list[nn.Parameter]

    def undo(self, model: nn.Module) -> None:
        """Once the old modules are back in the model: their parameters in their places, and what was noted of them.

        Of several exchanges one after the other, the first old parameters come back when the last is undone.
        """
        here = {id(p) for p in model.parameters()}
        _remove(self.optimizer, [p for p in self.new if id(p) not in here])
        gone = _gone(self.optimizer)
        back = sorted((one for key, one in gone.items() if key in here), key=lambda one: (one.group, one.at))
        for one in back:  # in rising order: each finds the places before it filled
            self.optimizer.param_groups[one.group]["params"].insert(one.at, one.parameter)
            if one.state is not None:
                self.optimizer.state[one.parameter] = one.state
            del gone[id(one.parameter)]


def _gone(optimizer: Optimizer) -> dict[int, Gone]:
    """What the optimizer has lost, by the identity of the parameter; copies and files of it go without."""
    return optimizer.__dict__.setdefault("_matmix_gone", {})


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
    groups = sorted({group for _, group, _ in places}) or [0]
    bare = [g for g in groups if not optimizer.param_groups[g].get("weight_decay")]
    rest = [g for g in groups if g not in bare]
    for p, group, at in places:
        _gone(optimizer)[id(p)] = Gone(p, group, at, optimizer.state.pop(p, None))
    _remove(optimizer, [p for p, _, _ in places])
    spared = undecayed(new)
    stayed = {id(p) for one in optimizer.param_groups for p in one["params"]}  # parts of the old that were kept
    fresh = {name: p for name, p in new.named_parameters() if p.requires_grad and id(p) not in stayed}
    for name, p in fresh.items():
        light = bool(bare) and (p.dim() < 2 or name in spared)
        target = (bare if light or not rest else rest)[0]
        optimizer.param_groups[target]["params"].append(p)
    return Exchange(optimizer, list(fresh.values()))


def _remove(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    gone = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for p in parameters:
        optimizer.state.pop(p, None)
