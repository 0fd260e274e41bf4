"""What a caller may give a mixer, and what is said of anything else.

The checks in the path of a forward (``Mixer._context``) see what is seen in a few comparisons. What PyTorch stumbles
over later, on its own terms, is looked for only when something has failed: ``explain`` goes through the arguments again
and says which of them it was. So a forward that succeeds pays for none of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from matmix.matrices.legend import FLOATS, fit, undense
from matmix.ops.private import in_jit_trace
from matmix.ops.sizes import is_size
from matmix.ranges import shown

MOST = 2**31
"""Tokens along an axis of a grid, and samples of a state; beyond them sizes overflow within PyTorch."""


def check_grid(grid: Any, traits: Any, name: str, option: str = "grid") -> tuple[int, ...] | None:
    """A grid as a tuple of positive integers of an accepted number of axes, or a ValueError that says what is."""
    if grid is None:
        if traits.length == "fixed":
            raise ValueError(f"{name} has a fixed length and needs {option}=(L,) or (rows, columns), got None")
        return None
    sizes = tuple(grid) if isinstance(grid, tuple | list) else (grid,) if isinstance(grid, int) else ()
    if len(sizes) not in traits.dims or not all(map(_is_count, sizes)):
        allowed = " or ".join({1: "(L,)", 2: "(rows, columns)"}.get(n, f"{n} axes") for n in sorted(traits.dims))
        raise ValueError(f"{name}: {option} must be {allowed} of positive integers below 2**31, got {shown(grid)}")
    return sizes


def check_axes(mixer: Any, grid: tuple[int, ...]) -> None:
    """A ValueError for a grid of another number of axes than ``mixer.axes``, where weights are made for them."""
    if len(grid) != mixer.axes:
        name = type(mixer).__name__
        raise ValueError(f"{name} takes a grid of {mixer.axes} axes, as it was built for, got {grid}")


def _is_count(size: Any) -> bool:
    if isinstance(size, int):
        return not isinstance(size, bool) and 0 < size < MOST
    return is_size(size) and size > 0  # a symbol of an exporter, of which no upper bound is asked


def check_batch(name: str, batch: Any) -> None:
    """A ValueError for what is no number of samples."""
    number = isinstance(batch, int) and not isinstance(batch, bool) and 0 <= batch < MOST
    symbol = not isinstance(batch, int) and is_size(batch) and (not isinstance(batch, Tensor) or in_jit_trace())
    if not (number or symbol):
        raise ValueError(f"{name}: batch must be a whole number from 0 to 2**31, got {shown(batch)}")


def likeness(state: Any) -> Any:
    """What of a state is the same for every batch: its tuples, and of each tensor the sizes behind B and the kind of
    numbers."""
    if isinstance(state, Tensor):
        return tuple(state.shape[1:]), state.is_floating_point(), state.is_complex()
    if state is None:
        return None
    return type(state), [likeness(part) for part in state]


def is_like(state: Any, like: Any, batch: int) -> bool:
    """Whether a state has a ``likeness`` and so many samples; an axis of size 0 may have grown."""
    if like is None:
        return state is None
    if len(like) == 3:
        sizes, floats, complexes = like
        if not isinstance(state, Tensor) or state.is_nested:
            return False
        shape, wanted = state.shape, (batch, *sizes)
        return (
            (shape == wanted or (len(shape) == len(wanted) and shape[0] == batch and all(map(_grown, wanted, shape))))
            and state.is_floating_point() == floats
            and state.is_complex() == complexes
        )
    kind, parts = like
    return type(state) is kind and len(state) == len(parts) and all(map(is_like, state, parts, [batch] * len(parts)))


def _grown(size: int, now: int) -> bool:
    return size in (0, now)


def described(state: Any) -> str:
    """A state in the text of an error: its tuples and lists, and shape and kind of its tensors."""
    if isinstance(state, tuple | list):
        return f"{type(state).__name__}({', '.join(map(described, state))})"
    return shown(state)


def explain(mixer: Any, error: Exception, x: Any, state: Any = (), grid: Any = None, **others: Any) -> None:
    """After an error: a ValueError in its place, if one of the arguments is what PyTorch stumbled over.

    Args:
        mixer: that was called.
        error: what came of it.
        x: tokens ``(B, L, D)``, or a token ``(B, D)``.
        state: of a recurrent mixer.
        grid: as it was given.
        others: mask and segments.
    """
    name = type(mixer).__name__
    if grid is not None:
        check_grid(grid, mixer.traits, name)
    # One of a matrix about its own parts is not ours to leave.
    if is_said(error) or isinstance(error, torch.OutOfMemoryError) or not isinstance(x, Tensor):
        return
    others |= {f"state[{place}]": leaf for place, leaf in enumerate(_leaves(state))}
    for word, value in {"x": x, **others}.items():
        if isinstance(value, Tensor) and (layout := undense(value)):
            raise ValueError(f"{name}: {word} must be a dense tensor, got one that is {layout}") from error
    if x.dtype not in FLOATS:
        allowed = ", ".join(map(str, FLOATS))
        raise ValueError(f"{name}: x must be one of {allowed}, got {shown(x)}") from error
    for word, value in others.items():
        if isinstance(value, Tensor) and value.device != x.device:
            raise ValueError(f"{name}: {word} must be on {x.device} as x is, got {value.device}") from error
    _name_weights(mixer, error, x)
    for word, value in others.items():
        if word.startswith("state") and value.is_floating_point() and value.dtype != x.dtype:
            raise ValueError(f"{name}: {word} must be {x.dtype} as x is, got {shown(value)}") from error


P = ParamSpec("P")
R = TypeVar("R")


class Input(NamedTuple):
    """What a model's method takes under a name, in the words of ``matmix.matrices.legend``."""

    legend: str
    dtype: torch.dtype | None = None
    needed: bool = False


def explaining(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a model that, when it fails, has ``model.explain(error, name of the method, arguments by name)`` look
    at what it was given.

    It raises the error in the place of PyTorch's, or nothing where the arguments are not to blame. A call that succeeds
    pays for none of it.
    """

    @functools.wraps(method)
    def explained(*args: P.args, **options: P.kwargs) -> R:
        try:
            return method(*args, **options)
        except Exception as error:
            try:
                given = inspect.signature(method).bind(*args, **options).arguments
            except TypeError:
                raise error from None  # an argument that the method does not have, or lacks: Python names it
            given.pop("self").explain(error, method.__name__, given)
            raise

    return explained


def is_said(error: Exception) -> bool:
    """Whether an error is one of ours that says itself what is wrong, and not what came of another."""
    return isinstance(error, ValueError) and error.__context__ is None


def explain_inputs(
    model: nn.Module, error: Exception, wanted: dict[str, Input], given: dict[str, Any], **known: int
) -> None:
    """After an error: a ValueError in its place, if an input has another shape, kind of numbers, layout or device.

    Args:
        model: that was called.
        error: what came of it.
        wanted: the inputs in the order in which they decide on the sizes.
        given: the arguments of the call; what is not needed may be absent or None.
        known: sizes of letters of the legends.
    """
    if isinstance(error, torch.OutOfMemoryError) or any("Proxy" in type(value).__name__ for value in given.values()):
        return
    name, sizes = type(model).__name__, dict(known)
    there = {word: given[word] for word in wanted if given.get(word) is not None or wanted[word].needed}
    for word, value in there.items():
        fit(name, word, value, wanted[word].legend, wanted[word].dtype, sizes)
    for word, value in there.items():
        _name_weights(model, error, value, word)


def _name_weights(mixer: Any, error: Exception, x: Tensor, word: str = "x") -> None:
    """Where weights are of another device or dtype than tokens, say so in place of what PyTorch said."""
    name = type(mixer).__name__
    weights = [w for w in chain(mixer.parameters(), mixer.buffers()) if w.is_floating_point()]
    loaded = [w for w in weights if not w.is_meta]  # offloaded weights are on the meta device while they are not used
    weight = next(chain(loaded, weights), None)
    if weight is None:
        return
    if weight.device != x.device:
        where = f"{weight.device}, got {word} on {x.device}"
        raise ValueError(f"{name}: {word} must be where its weights are, {where}") from error
    if not x.is_floating_point():
        return
    other = next((w for w in loaded if w.dtype != x.dtype), None)
    if other is not None and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"{name}: {word} is {x.dtype}, its weights {other.dtype}: convert one of them, or run under torch.autocast"
        ) from error


def _leaves(state: Any) -> Iterable[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:
            yield from _leaves(part)
