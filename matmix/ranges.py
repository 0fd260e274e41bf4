"""What a setting may be: settings of a dataclass are checked in one place, and an error names field, value and range.

::

    def __post_init__(self):
        check(self, steps=numbers(least=1, whole=True), warmup=numbers(0, 1), precision=one_of("no", "bf16"))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Allowed(NamedTuple):
    """What a value may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def check(owner: object, **allowed: Allowed) -> None:
    """Raise a ValueError for the first setting of an object that is not what it may be."""
    for name, range_ in allowed.items():
        value = getattr(owner, name)
        if not range_.holds(value):
            raise ValueError(f"{type(owner).__name__}.{name} must be {range_.words}, got {value!r}")


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
            and (isinstance(value, int) or math.isfinite(value))  # isfinite overflows for whole numbers of 309 digits
            and least <= value <= most
            and above < value < below
        )

    low = f"({above:g}" if above > -math.inf else f"[{least:g}"
    high = f"{below:g})" if below < math.inf else f"{most:g}]"
    bounds = f" in {low}, {high}"
    if high == "inf]":
        bounds = f" above {above:g}" if low[0] == "(" else f" of at least {least:g}" if least > -math.inf else ""
    return Allowed(f"a {'whole' if whole else 'finite'} number{bounds}", holds)


def one_of(*choices: str) -> Allowed:
    return Allowed(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def pair_of(allowed: Allowed) -> Allowed:
    """A tuple or list of two such values."""
    return Allowed(
        f"a pair, each {allowed.words}",
        lambda value: isinstance(value, tuple | list) and len(value) == 2 and all(map(allowed.holds, value)),
    )


def or_none(allowed: Allowed) -> Allowed:
    return Allowed(f"{allowed.words}, or None", lambda value: value is None or allowed.holds(value))
