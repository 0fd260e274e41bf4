"""What a value may be: ranges as objects, and what an annotation lets through.

::

    lr: Amount = 1e-3                                       # a name for a common range
    patch: Annotated[int, numbers(1, 4, whole=True)] = 1    # or a range of its own
    act: Literal["gelu", "relu"] = "gelu"                   # other kinds say it themselves

`matmix.settings` checks dataclasses by it, `matmix.mixers.options` the constructors of mixers and models.
"""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

LONGEST = 4096
"""Characters of a string: those of a path on Linux."""


class Allowed(NamedTuple):
    """What a value may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def numbers(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> Allowed:
    """Finite numbers within bounds, or only whole ones."""
    kinds = int if whole else int | float

    def holds(value: Any) -> bool:
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and (whole or _finite(value))
            and least <= value <= most
            and above < value < below
        )

    low = f"({above:g}" if above > -math.inf else f"[{least:g}"
    high = f"{below:g})" if below < math.inf else f"{most:g}]"
    bounds = f" in {low}, {high}"
    if high == "inf]":
        bounds = f" above {above:g}" if low[0] == "(" else f" of at least {least:g}" if least > -math.inf else ""
    return Allowed(f"a {'whole' if whole else 'finite'} number{bounds}", holds)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is beyond all floats
        return False


def one_of(*choices: Any) -> Allowed:
    """One of some constants; True is not 1, and neither is 1.0."""
    return Allowed(
        f"one of {', '.join(map(repr, choices))}",
        lambda value: any(_kind(value) is _kind(choice) and value == choice for choice in choices),
    )


def _kind(value: Any) -> type:
    return str if isinstance(value, str) else type(value)  # a text of a subclass is a text


def either(*some: Allowed) -> Allowed:
    """What any of them allows."""
    return Allowed(" or ".join(each.words for each in some), lambda value: any(each.holds(value) for each in some))


def or_none(allowed: Allowed) -> Allowed:
    return Allowed(f"{allowed.words}, or None", lambda value: value is None or allowed.holds(value))


# Upper bounds are far beyond use; behind them sizes and tensors of 32 bits overflow within PyTorch.
Count = Annotated[int, numbers(1, 1e9, whole=True)]
"""1, 2, 3, ..."""
Several = Annotated[int, numbers(2, 1e9, whole=True)]
"""2, 3, ..."""
Whole = Annotated[int, numbers(0, 1e9, whole=True)]
"""0, 1, 2, ...: where 0 has a meaning of its own, it is said."""
Depth = Annotated[int, numbers(1, 1e4, whole=True)]
"""Layers, or what else is built one by one."""
Seed = Annotated[int, numbers(0, below=2**63, whole=True)]
Amount = Annotated[float, numbers(0, 1e9)]
Rate = Annotated[float, numbers(0, 1e30)]
"""Of learning: so large that a run diverges at once, on purpose."""
Positive = Annotated[float, numbers(above=0, most=1e9)]
Share = Annotated[float, numbers(0, 1)]
Portion = Annotated[float, numbers(above=0, most=1)]
OpenShare = Annotated[float, numbers(above=0, below=1)]
LessThanHalf = Annotated[float, numbers(0, below=0.5)]
Chance = Annotated[float, numbers(0, below=1)]
"""Below 1: what is always left out is never learnt."""


def _is_place(value: Any) -> bool:
    return _is_text(value) and all(len(part.encode()) <= 255 for part in value.split("/"))


Place = Annotated[
    str, Allowed("a path or a name, of at most 255 bytes between two slashes, none of them NUL", _is_place)
]
"""Of a file or a folder, as file systems can have it."""


def allowed(
    annotation: Any, bounds: Mapping[str, float] = types.MappingProxyType({}), *, lists: bool = False
) -> Allowed | None:
    """What an annotation lets through; None where it lets through anything (Any, a type variable).

    Args:
        annotation: bool, int, float, str, Literal words, a class; unions, tuples, sequences and mappings of these. What
            ``Annotated`` says with an ``Allowed`` holds as it stands.
        bounds: keywords of ``numbers``, for numbers that have no bounds of their own.
        lists: a list may stand for a tuple, and a pair may hold inf.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        own = [meta for meta in annotation.__metadata__ if isinstance(meta, Allowed)]
        return own[0] if own else allowed(parts[0], bounds, lists=lists)
    if origin is Literal:
        return one_of(*parts)
    if origin in (types.UnionType, typing.Union):
        inner = [allowed(part, bounds, lists=lists) for part in parts if part is not types.NoneType]
        some = [each for each in inner if each is not None]
        if len(some) < len(inner):
            return None
        one = some[0] if len(some) == 1 else either(*some)
        return or_none(one) if types.NoneType in parts else one
    if origin is tuple:
        return _tuple_of(parts, bounds, lists)
    if origin in (collections.abc.Sequence, list):
        return _each(parts[0], bounds, (list,) if origin is list else (tuple, list), "a list", lists)
    if origin in (dict, collections.abc.Mapping):
        return _mapping_of(*(allowed(part, bounds, lists=lists) for part in parts))
    if origin is type:
        base = parts[0] if isinstance(parts[0], type) else object
        words = "a class" if base is object else f"a subclass of {base.__name__}"
        return Allowed(words, lambda value: isinstance(value, type) and issubclass(value, base))
    return _plain(annotation if origin is None else origin, bounds)


def _plain(kind: Any, bounds: Mapping[str, float]) -> Allowed | None:
    if kind is bool:
        return Allowed("True or False", lambda value: isinstance(value, bool))
    if kind in (int, float):
        return numbers(**bounds, whole=kind is int)
    if kind is str:
        return Allowed(f"a string of at most {LONGEST:,} whole characters, none of them NUL", _is_text)
    if kind is collections.abc.Callable:
        return Allowed("a function", callable)
    if isinstance(kind, type) and kind not in (object, Any):  # Any is a class since Python 3.11
        return Allowed(f"a {kind.__name__}", lambda value: isinstance(value, kind))
    return None


def _tuple_of(parts: tuple[Any, ...], bounds: Mapping[str, float], lists: bool) -> Allowed | None:
    """Tuples: of any length where the annotation ends in an ellipsis."""
    kinds = (tuple, list) if lists else (tuple,)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return _each(parts[0], bounds, kinds, "a tuple", lists)
    found = [allowed(part, bounds, lists=lists) for part in parts]
    inner = [each for each in found if each is not None]
    if len(inner) < len(found) or not inner:
        return None
    if lists and len(inner) == 2:
        inner = [_endless(each) for each in inner]
    same = len({each.words for each in inner}) == 1
    of = f"each {inner[0].words}" if same else ", ".join(each.words for each in inner)
    name = "a pair" if len(inner) == 2 else f"a tuple of {len(inner)}"
    return Allowed(
        f"{name}, {of}" if same else f"{name}: {of}",
        lambda value: (
            isinstance(value, kinds)
            and len(value) == len(inner)
            and all(each.holds(part) for each, part in zip(inner, value, strict=True))
        ),
    )


def _each(part: Any, bounds: Mapping[str, float], kinds: tuple[type, ...], name: str, lists: bool) -> Allowed | None:
    inner = allowed(part, bounds, lists=lists)
    if inner is None:
        return Allowed(name, lambda value: isinstance(value, kinds))
    words, one_holds = f"{name}, each {inner.words}", inner.holds

    def holds(value: Any) -> bool:
        return isinstance(value, kinds) and all(one_holds(one) for one in iter(value))  # type: ignore[call-overload]

    return Allowed(words, holds)


def _is_text(value: Any) -> bool:
    """A string that can be written to a file and be the name of one."""
    return (
        isinstance(value, str)
        and len(value) <= LONGEST
        and "\0" not in value
        and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def _mapping_of(key: Allowed | None, item: Allowed | None) -> Allowed:
    words = " of ".join(filter(None, ["a table", item and f"items, each {item.words}"]))
    return Allowed(
        words,
        lambda value: (
            isinstance(value, Mapping)
            and (key is None or all(key.holds(word) for word in value))
            and (item is None or all(item.holds(one) for one in value.values()))
        ),
    )


def _endless(kind: Allowed) -> Allowed:
    if "number" not in kind.words:
        return kind
    return Allowed(f"{kind.words}, or inf", lambda value: kind.holds(value) or value == float("inf"))


def refuse(name: str, kind: Allowed, value: Any) -> ValueError:
    """The error for a value that is not what it may be."""
    return ValueError(f"{name} must be {kind.words}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in the text of an error, in one line of at most 500 characters; a tensor or array by shape and dtype."""
    if getattr(value, "is_nested", False):  # has no sizes to be asked for
        return f"a nested tensor of {value.dtype}"
    if isinstance(shape := getattr(value, "shape", None), tuple) and shape and hasattr(value, "dtype"):
        return f"{tuple(shape)} of {value.dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of more digits than Python writes, or an object that cannot write itself
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 500 else f"{text[:500]}..."


def hints(names: Sequence[str], annotations: Mapping[str, Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations with their names looked up; one that only a type checker can read is left out."""
    found: dict[str, Any] = {}
    for name in names:
        one = types.SimpleNamespace(__annotations__={name: annotations[name]} if name in annotations else {})
        try:
            found |= typing.get_type_hints(one, dict(scope), include_extras=True)
        except (NameError, AttributeError, TypeError):
            continue
    return found
