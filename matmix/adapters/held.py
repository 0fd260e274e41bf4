"""Attributes that are otherwise for a while. Several may hold one: the first notes what was there, the last undoes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from matmix.adapters.base import Setting

_HELD: WeakKeyDictionary[nn.Module, dict[str, list[Any]]] = WeakKeyDictionary()  # owner -> name -> [before, how many]
_ABSENT = object()


def hold(setting: Setting) -> None:
    """Set an attribute of an instance."""
    owner, name = setting.owner, setting.attribute
    held = _HELD.setdefault(owner, {})
    if name not in held:
        held[name] = [owner.__dict__.get(name, _ABSENT), 0]
    held[name][1] += 1
    owner.__dict__[name] = setting.value


def release(setting: Setting) -> None:
    """Undo one ``hold``."""
    owner, name = setting.owner, setting.attribute
    held = _HELD[owner]
    held[name][1] -= 1
    if held[name][1]:
        return
    before = held.pop(name)[0]
    if before is _ABSENT:
        owner.__dict__.pop(name, None)
    else:
        owner.__dict__[name] = before


@contextmanager
def holding(settings: Iterable[Setting]) -> Iterator[None]:
    """Inside, the attributes have the values of the settings."""
    done = []
    try:
        for setting in settings:
            hold(setting)
            done.append(setting)
        yield
    finally:
        for setting in reversed(done):
            release(setting)
