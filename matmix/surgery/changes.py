"""Changes of a model that can be taken back, in any order.

A place is a slot of a module's children. What was put into a place is taken back by putting in what was there before.
Where something else was put on top meanwhile, that stays: what lies under it becomes what lay under the change that was
taken back. So the model is what it was once every change is taken back, whatever the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from matmix.adapters import Setting
from matmix.adapters.held import hold, release
from matmix.adapters.rematrixed import SLOT, put_matrix

_ABOVE = "_matmix_above"


class _Above(list["Change"]):
    """The changes that put another module on top of one: an attribute of that one, which lives as long as it does.

    Copies and files of the module go without it: a copy has its own places.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Above:
        return _Above()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Above, ()


@dataclass
class Change:
    """``new`` in the place of ``old`` (None: nothing), under one or several owners."""

    owners: Sequence[tuple[nn.Module, str]]
    old: nn.Module | None
    new: nn.Module
    settings: Sequence[Setting] = field(default=())
    done: bool = False

    def apply(self) -> None:
        """Put the new module into every place."""
        self.done = True
        for owner, slot in self.owners:
            _put(owner, slot, self.new)
        if self.old is not None:
            self.old.__dict__.setdefault(_ABOVE, _Above()).append(self)
        for setting in self.settings:
            hold(setting)

    def revert(self) -> None:
        """Put the old one back, or under whatever was put on top of the new one meanwhile.

        Raises:
            ValueError: if a place holds what no change has put there; nothing is changed then.
        """
        if not self.done:
            return
        above = [change for change in self.new.__dict__.get(_ABOVE, ()) if change.done]
        here = [(owner, slot) for owner, slot in self.owners if owner._modules.get(slot) is self.new]
        if not above and len(here) < len(self.owners):
            slot = next(slot for owner, slot in self.owners if owner._modules.get(slot) is not self.new)
            raise ValueError(f"cannot restore {slot!r}: it holds a module that was not put there by matmix.surgery")
        for owner, slot in here:
            _put(owner, slot, self.old)
        for change in above:
            change.old = self.old
        self.new.__dict__.pop(_ABOVE, None)
        if self.old is not None:
            left = [c for c in self.old.__dict__.pop(_ABOVE, ()) if c is not self] + above
            if left:
                self.old.__dict__[_ABOVE] = _Above(left)
        for setting in self.settings:
            release(setting)
        self.done = False


def _put(owner: nn.Module, slot: str, module: nn.Module | None) -> None:
    if slot == SLOT:
        put_matrix(owner, module)
    else:
        owner._modules[slot] = module
