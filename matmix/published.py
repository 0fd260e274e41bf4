"""Weights of published code, loaded into our modules: everything in its place, or an error that names it.

A class says which checkpoints it can take in ``published``, source -> function that renames and reshapes::

    published: ClassVar = {"owner/repo": lambda module, state: {...}}

The function gets the module and the published state dict, and returns ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)
Convert = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]


class _Read(dict[str, Tensor]):
    """A state dict that remembers which entries were asked for."""

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        super().__init__(entries)
        self.unread = set(entries)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.unread.discard(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.unread.discard(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # being overridden, it keeps dict(...) and {**...} on __getitem__

    # Whoever takes the whole has asked for every entry.

    def items(self) -> Any:
        self.unread.clear()
        return super().items()

    def values(self) -> Any:
        self.unread.clear()
        return super().values()

    def copy(self) -> dict[str, Tensor]:
        return dict(self.items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()


def load_published(module: _ModuleT, state_dict: Mapping[str, Tensor | np.ndarray], source: str) -> _ModuleT:
    """Load a published checkpoint into a module, in place and strictly.

    Args:
        module: a module whose class has ``published``; it keeps its dtype and device.
        state_dict: names and values as the published code saves them, tensors or arrays.
        source: ``owner/repo`` of that code.

    Returns:
        The module.

    Raises:
        ValueError: for a source that the class does not know (the message lists those it does), for entries that are
            missing, left over, of the wrong shape or no tensors (it names every one). The module is then unchanged.
    """
    name = type(module).__name__
    known: Mapping[str, Convert] = getattr(type(module), "published", {})
    if source not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise ValueError(f"source: {name} loads no weights of {source!r}; it knows: {listed}")
    state = _Read({key: _tensor(key, value) for key, value in state_dict.items()})
    try:
        ours = known[source](module, state)
    except KeyError as error:
        raise ValueError(f"{name} cannot load weights of {source!r}: missing: {error.args[0]}") from error
    problems = mismatches(module.state_dict(), ours)
    if ours is not state and state.unread:
        problems.append(f"left over: {', '.join(sorted(state.unread))}")
    if problems:
        raise ValueError(f"{name} cannot load weights of {source!r}: {'; '.join(problems)}")
    module.load_state_dict(ours, strict=True)
    return module


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.number):
        return torch.from_numpy(np.array(value))  # a copy: arrays of a memory map are read-only
    inside = f" with the keys {', '.join(map(str, list(value)[:4]))}" if isinstance(value, Mapping) else ""
    raise ValueError(f"state_dict[{name!r}] is no tensor or array but a {type(value).__name__}{inside}")


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the state dict ``given`` from being loaded where ``wanted`` stands, one line a kind; [] if nothing."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes, kinds = [], []
    for name in wanted.keys() & given.keys():
        ours, theirs = wanted[name], given[name]
        if ours.shape != theirs.shape:
            shapes.append(f"{name} {tuple(theirs.shape)} for {tuple(ours.shape)}")
        if theirs.is_complex() and not ours.is_complex():
            kinds.append(f"{name} {theirs.dtype} for {ours.dtype}")
    found = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of the wrong shape", sorted(shapes)),
        ("complex where ours is real", sorted(kinds)),
    )
    return [f"{what}: {', '.join(names)}" for what, names in found if names]
