"""The adapters that are known: ours, those registered, and of other packages (entry points ``matmix.adapters``)."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from typing import TypeVar

from matmix.adapters.base import Adapter
from matmix.spec import hint

_AdapterT = TypeVar("_AdapterT", bound=type[Adapter])
_ADAPTERS: dict[str, Adapter] = {}
_PLUGINS_LOADED = False


def register_adapter(cls: _AdapterT) -> _AdapterT:
    """Put an adapter class under its name; those registered later are asked first.

    Raises:
        TypeError: for what is no adapter class.
        ValueError: for a name that another class has, or none.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Adapter)):
        raise TypeError(f"an adapter is a subclass of matmix.adapters.Adapter, got {cls!r}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{cls.__qualname__} needs a name, a string that sites carry, got {name!r}")
    known = _ADAPTERS.get(name)
    if known is not None and (type(known).__module__, type(known).__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the adapter name {name!r} is taken by {type(known).__module__}.{type(known).__qualname__}")
    _ADAPTERS.pop(name, None)
    _ADAPTERS[name] = cls()
    return cls


def adapters() -> list[Adapter]:
    """Every adapter, in the order in which they are asked whether they know a module."""
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        for entry in entry_points(group="matmix.adapters"):
            found = entry.load()
            if inspect.isclass(found) and issubclass(found, Adapter) and found.name not in _ADAPTERS:
                register_adapter(found)
    newest = list(_ADAPTERS.values())[::-1]
    return sorted(newest, key=lambda adapter: adapter.last)


def adapter_named(name: str) -> Adapter:
    """The adapter of a site by its name.

    Raises:
        ValueError: for an unknown name; the message lists the close ones.
    """
    known = {adapter.name: adapter for adapter in adapters()}
    if name not in known:
        raise ValueError(f"unknown adapter {name!r}{hint(name, known)}")
    return known[name]
