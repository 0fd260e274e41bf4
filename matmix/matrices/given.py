"""What people may give a matrix, and what is said of anything else, after something has failed.

A product in a forward checks the shape of its values and nothing else. Where PyTorch stumbles over what it was given,
``explained`` looks at it again and says what it was: the fields of the matrix against the legend of its class, then the
arguments against the annotations of the method, then devices and dtypes. A call that succeeds pays for none of it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from matmix.matrices.legend import FLOATS, undense
from matmix.ranges import Allowed, allowed, either, hints, numbers, or_none, refuse, shown


def kind(annotation: Any, least: float = -math.inf) -> Allowed | None:
    """What an annotation lets through, None where it says nothing that can be checked.

    Args:
        annotation: bool, int, float, str, a dtype, a device, a tensor, a matrix, a tuple of any number of one of these,
            or one of these or None.
        least: of whole numbers, those of a tuple too.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        inner = [found for part in parts if part is not types.NoneType and (found := kind(part, least)) is not None]
        if len(inner) < len([part for part in parts if part is not types.NoneType]):
            return None
        return or_none(either(*inner)) if types.NoneType in parts else either(*inner)
    if origin is tuple:
        each = kind(parts[0], least)
        if each is None:
            return None
        return Allowed(
            f"a tuple of at least one, each {each.words}",
            lambda value: isinstance(value, tuple | list) and len(value) > 0 and all(map(each.holds, value)),
        )
    if annotation is bool:
        return allowed(bool)
    if annotation in (int, float):
        number = numbers(least, 2**31 if annotation is int else sys.float_info.max, whole=annotation is int)
        words = number.words if annotation is int else "a finite number"
        return Allowed(words, lambda value: number.holds(value) or isinstance(value, torch.SymInt))
    if isinstance(annotation, type):
        names = {str: "a string", torch.dtype: "a torch.dtype", torch.device: "a torch.device", Tensor: "a tensor"}
        name = names.get(annotation, f"a {annotation.__name__}")
        return Allowed(name, lambda value: isinstance(value, annotation))
    return None


def explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of matrices whose errors say what was given to it, where that is what is wrong.

    Args:
        method: takes a matrix, or a matrix class, first.
    """

    @functools.wraps(method)
    def called(owner: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(owner, *args, **options)
        except Exception as error:
            explain(owner, error, method, args, options)
            raise

    return called


def explain(
    owner: Any, error: Exception, method: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """After an error of ``method(owner, *args, **options)``: a ValueError in its place that names what was wrong."""
    if torch.compiler.is_compiling():
        return
    made = not isinstance(owner, type)
    name = type(owner).__name__ if made else owner.__name__
    if made:
        owner.check()
    try:
        given = inspect.signature(method).bind(owner, *args, **options).arguments
    except TypeError:  # too many arguments, or one that there is not: Python has said so
        return
    parameters = inspect.signature(method).parameters
    annotations = hints(list(parameters), method.__annotations__, method.__globals__)
    bounds = {f.name: f.metadata.get("least", -math.inf) for f in dataclasses.fields(owner)}
    flat: dict[str, Any] = {}
    for word, value in list(given.items())[1:]:
        several = parameters[word].kind is inspect.Parameter.VAR_POSITIONAL
        flat |= {f"{word}[{place}]": each for place, each in enumerate(value)} if several else {word: value}
        may = kind(annotations.get(word), bounds.get(word, -math.inf))
        for each in value if several else (value,):
            if may is not None and not may.holds(each):
                raise refuse(f"{name}: {word}", may, each) from error
    if isinstance(error, ValueError):
        return  # ours, and it has said what is wrong
    for word, value in flat.items():
        if hasattr(value, "check"):
            value.check()
        if word == "values" and (
            value.is_nested or value.dim() != 4 or 0 in value.shape[1:] or not value.is_floating_point()
        ):
            raise ValueError(f"{name}: values must be (B, H, L, W) of floating point, got {shown(value)}") from error
    _compare(name, error, ({"": owner} if made else {}) | flat)


def _compare(name: str, error: Exception, given: dict[str, Any]) -> None:
    """Layouts, devices and dtypes of everything that has some."""
    stated = [found for word, value in given.items() for found in _stated(value, word)]
    tensors = [(word, tensor) for word, tensor in stated if isinstance(tensor, Tensor)]
    for word, tensor in tensors:
        if layout := undense(tensor):
            raise ValueError(f"{name}: {word} must be a dense tensor, got one that is {layout}") from error
    devices = [(word, one.device if isinstance(one, Tensor) else one) for word, one in stated]
    for word, device in devices:
        if device != devices[0][1]:
            wanted = f"{devices[0][1]} as {devices[0][0]} is"
            raise ValueError(f"{name}: {word} must be on {wanted}, got it on {device}") from error
    floats = [(word, t) for word, t in tensors if t.is_floating_point()]
    for word, tensor in floats:
        if tensor.dtype not in FLOATS:
            listed = ", ".join(map(str, FLOATS))
            raise ValueError(f"{name}: {word} must be one of {listed}, got {shown(tensor)}") from error
        if tensor.dtype != floats[0][1].dtype:
            wanted = f"{floats[0][1].dtype} as {floats[0][0]} is"
            raise ValueError(f"{name}: {word} must be {wanted}, got {shown(tensor)}") from error


def _stated(value: Any, word: str) -> Iterator[tuple[str, Tensor | torch.device]]:
    """Tensors of an argument, those of a matrix too, and the devices that matrices without tensors state, by name."""
    if isinstance(value, Tensor):
        yield word, value
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _stated(part, f"{word}[{place}]")
    elif hasattr(type(value), "_tensors"):
        for name in (*type(value)._tensors, *(n for n in type(value)._options if n == "device")):
            part, named = getattr(value, name), f"{word}.{name}" if word else name
            yield from [(named, part)] if isinstance(part, torch.device) else _stated(part, named)
