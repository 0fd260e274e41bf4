"""The parameters of an optimizer, when modules change places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from matmix.ops.marks import no_weight_decay, optim_settings


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
        _leave_out_added(self.optimizer)


def _gone(optimizer: Optimizer) -> dict[int, Gone]:
    """What the optimizer has lost, by the identity of the parameter; copies and files of it go without."""
    return optimizer.__dict__.setdefault("_matmix_gone", {})


def exchange(
    optimizer: Optimizer, old: Iterable[nn.Parameter], new: Iterable[nn.Parameter], model: nn.Module
) -> Exchange:
    """Old parameters go, with their state, and the new ones, which stand in the model by now, come into their group.

    Where the old ones stood in several groups, vectors and those that weight decay leaves alone come into the one
    without decay. New ones come into the first group if there were no old ones to be trained (pooling has none), and
    not at all if they are frozen. What a module of the model says of a parameter (``no_weight_decay``,
    ``optim_settings``) holds as in the trainer: where no group is like that, one is added, which differs from the other
    in that alone. A rate of its own stands there as ``initial_lr`` too, at the height of the schedule so far.
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
    optimizer.__dict__.setdefault("_matmix_groups", len(optimizer.param_groups))
    spared, own = no_weight_decay(model), optim_settings(model)
    names = {id(p): name for name, p in model.named_parameters()}
    stayed = {id(p) for one in optimizer.param_groups for p in one["params"]}  # parts of the old that were kept
    fresh = [p for p in new if p.requires_grad and id(p) not in stayed]
    for p in fresh:
        name = names[id(p)]
        light = bool(bare) and (p.dim() < 2 or name in spared)
        base = optimizer.param_groups[(bare if light or not rest else rest)[0]]
        _join(optimizer, p, base, {**({"weight_decay": 0.0} if name in spared else {}), **own.get(name, {})})
    return Exchange(optimizer, fresh)


def _join(optimizer: Optimizer, parameter: nn.Parameter, base: dict[str, Any], settings: dict[str, float]) -> None:
    """Put a parameter into the first group that is like ``base`` but for these settings, or into a new one."""
    wanted = {name: value for name, value in base.items() if name != "params"}
    if "lr" in settings:
        top = base.get("initial_lr", base["lr"])
        wanted |= {"lr": settings["lr"] * (base["lr"] / top if top else 1.0), "initial_lr": settings["lr"]}
    if settings.get("weight_decay", wanted.get("weight_decay", 0.0)) != wanted.get("weight_decay", 0.0):
        wanted["weight_decay"] = settings["weight_decay"]
    for group in (base, *optimizer.param_groups):
        if _kind(group) == _kind(wanted):
            group["params"].append(parameter)
            return
    optimizer.add_param_group({"params": [parameter], **wanted})


def _kind(group: dict[str, Any]) -> dict[str, Any]:
    """What makes it another group: all but its parameters, and where a schedule stands."""
    passing = ("params", "lr") if "initial_lr" in group else ("params",)
    return {name: value for name, value in group.items() if name not in passing}


def _leave_out_added(optimizer: Optimizer) -> None:
    """Groups that exchanges have added go once they are empty and nothing is to come back into them; places of other
    parameters are counted by group, so only the last ones can."""
    first, awaited = optimizer.__dict__["_matmix_groups"], {one.group for one in _gone(optimizer).values()}
    groups = optimizer.param_groups
    while len(groups) > first and not groups[-1]["params"] and len(groups) - 1 not in awaited:
        groups.pop()


def _remove(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    gone = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for p in parameters:
        optimizer.state.pop(p, None)
