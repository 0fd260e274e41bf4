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

from matmix.ranges import shown

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)
Convert = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]


class _Read(dict[str, Tensor]):
    """A state dict that remembers which entries were asked for."""

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        super().__init__(entries)
        self.unread = set(entries)
        self.read: list[str] = []  # in the order of asking

    def _asked(self, name: str) -> None:
        self.unread.discard(name)
        self.read.append(name)

    def __getitem__(self, name: str) -> Tensor:
        self._asked(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._asked(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._asked(name)
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
    if not isinstance(source, str) or source not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise ValueError(f"source: {name} loads no weights of {source!r}; it knows: {listed}")
    ours, problems = _converted(module, state_dict, source)
    if problems:
        raise ValueError(f"{name} cannot load weights of {source!r}: {'; '.join(problems)}")
    module.load_state_dict(ours, strict=True)
    return module


def find_source(
    module: nn.Module, state_dict: Mapping[str, Tensor | np.ndarray], *, names_but: str | None = None
) -> tuple[str, dict[str, Tensor]]:
    """Find by its names whose weights a state dict holds.

    Args:
        module: a module; it is left as it is.
        state_dict: what a file holds.
        names_but: where given, names alone count, shapes do not, and those that begin so (a classifier) may differ or
            lack: for a loader that fits such weights by itself.

    Returns:
        The source, "" for our own naming, and the weights under our names.

    Raises:
        ValueError: if it is nobody's; the message says what is wrong in the naming with the least to complain about.
    """
    reasons = []
    for source in ("", *sorted(getattr(type(module), "published", {}))):
        try:
            ours, problems = _converted(module, state_dict, source)
        except (ValueError, AttributeError) as error:  # of a converter that met names which are not its own
            ours, problems = {}, [str(error)]
        else:
            if names_but is not None:
                given, wanted = (
                    {name for name in names if not name.startswith(names_but)} for names in (ours, module.state_dict())
                )
                listed = (("missing", wanted - given), ("unexpected", given - wanted)) if ours else ()
                problems = [f"{what}: {', '.join(sorted(names))}" for what, names in listed if names] or (
                    [] if ours else problems
                )
        if not problems:
            return source, ours
        # A converter that met a name which is not its own stopped there: its complaint is no measure.
        text = (f"as weights of {source}: " if source else "") + "; ".join(problems)
        reasons.append((not ours, text.count(", "), text))
    reason = min(reasons, key=lambda each: each[:2])[-1]
    raise ValueError(reason if len(reason) < 2000 else f"{reason[:2000]} ... and so on")


def unwrap(checkpoint: Any) -> Any:
    """What stands in the usual wrappings of a checkpoint: "state_dict", "model", and "module." before every name."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # averages are the ones that papers score
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if isinstance(checkpoint, dict) and all(str(name).startswith("module.") for name in checkpoint):
        checkpoint = {name.removeprefix("module."): value for name, value in checkpoint.items()}
    return checkpoint


def _converted(
    module: nn.Module, state_dict: Mapping[str, Tensor | np.ndarray], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict under our names ("" as source: it has them), and what keeps it from being loaded; {} if nothing
    comes of it."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict must be a mapping of names to tensors, got {shown(state_dict)}")
    given = {key: _tensor(key, value) for key, value in state_dict.items()}
    state = _Read(given)
    try:
        ours = type(module).published[source](module, state) if source else dict(state)  # type: ignore[attr-defined]
    except KeyError as error:
        return {}, [f"missing: {error.args[0]}"]
    except Exception as error:  # what PyTorch, or the converter, says of a shape that it cannot split, stack or turn
        said = str(error).strip().splitlines() or [type(error).__name__]
        last = next((name for name in reversed(state.read) if name in given), None)
        if last is None:
            return {}, [f"the entries must be those of {source}: {said[0]}"]
        return {}, [f"of the wrong shape: {last} {tuple(given[last].shape)}, or an entry read before it: {said[0]}"]
    problems = misfits(module, ours)
    if ours is not state and state.unread:
        problems.append(f"left over: {', '.join(sorted(state.unread))}")
    return ours, problems


def _tensor(name: Any, value: Any) -> Tensor:
    if not isinstance(name, str):
        raise ValueError(f"the names of state_dict must be strings, got {shown(name)}")
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"state_dict[{name!r}] must be a dense tensor, got one nested, sparse or quantised")
        return value.detach()
    if isinstance(value, np.ndarray | np.number):
        if value.dtype.kind not in "fiubc":
            raise ValueError(f"state_dict[{name!r}] must be an array of numbers, got one of {value.dtype}")
        return torch.from_numpy(np.array(value))  # a copy: arrays of a memory map are read-only
    inside = f" with the keys {', '.join(map(str, list(value)[:4]))}" if isinstance(value, Mapping) else ""
    raise ValueError(f"state_dict[{name!r}] is no tensor or array but a {type(value).__name__}{inside}")


def misfits(module: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being loaded into a module, one line a kind, and what the module says to it: one
    with ``explain_shapes(names)`` knows, say, the weights that belong to an image size. [] if nothing."""
    wanted = module.state_dict()
    problems = mismatches(wanted, given)
    explain = getattr(module, "explain_shapes", None)
    if problems and explain is not None:
        said = explain([name for name in wanted if name in given and wanted[name].shape != given[name].shape])
        problems += [said] if said else []
    return problems


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the state dict ``given`` from being loaded where ``wanted`` stands, one line a kind; [] if nothing."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes, kinds, numbers, empty = [], [], [], []
    for name in wanted.keys() & given.keys():
        ours, theirs = wanted[name], given[name]
        if ours.shape != theirs.shape:
            shapes.append(f"{name} {tuple(theirs.shape)} for {tuple(ours.shape)}")
        if theirs.is_meta and not ours.is_meta:
            empty.append(name)
        elif theirs.is_complex() and not ours.is_complex():
            kinds.append(f"{name} {theirs.dtype} for {ours.dtype}")
        elif ours.is_floating_point() and not theirs.is_floating_point() and not theirs.is_complex():
            numbers.append(f"{name} {theirs.dtype} for {ours.dtype}")  # quantised: their scale stands elsewhere
    found = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of the wrong shape", sorted(shapes)),
        ("without numbers, on the meta device, where ours has some", sorted(empty)),
        ("complex where ours is real", sorted(kinds)),
        ("whole numbers where ours must be real", sorted(numbers)),
    )
    return [f"{what}: {', '.join(names)}" for what, names in found if names]
