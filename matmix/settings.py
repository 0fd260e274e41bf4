"""Dataclasses of settings: every field is what its annotation says, checked once, before an object is made.

::

    @dataclass(frozen=True)
    class Parity(Settings):
        length: Count = 16                      # a whole number of at least 1; see `matmix.ranges` for more such names
        layout: Literal["row", "grid"] = "row"
        dropout: Chance = 0.0

    Parity(length=2.5)                          # ValueError: Parity.length must be a whole number in ..., got 2.5

What hangs on several fields a class checks in its ``__post_init__``, which may rely on their kinds.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from functools import cache
from typing import Any, Self

from matmix.ranges import Allowed, allowed, hints, refuse
from matmix.spec import unknown_option


class Settings:
    """Base of dataclasses that are checked by their annotations; it has no fields.

    Raises:
        TypeError: for a setting that the class does not have; close names are listed.
        ValueError: for a value of another kind, or out of range. A bool is no number, 2.5 and 3.0 are no whole numbers,
            a text is no switch, a list is no tuple; a whole number may stand for a float.
    """

    def __new__(cls, *args: Any, **given: Any) -> Self:
        if "__dataclass_fields__" not in vars(cls):  # it has a constructor of its own
            return super().__new__(cls)
        names, kinds = _fields(cls)  # type: ignore[arg-type]  # a class is hashable
        for name in given:
            if name not in names:
                raise TypeError(unknown_option(cls.__name__, name, list(names), "setting"))
        # What is too many for the fields is refused by the constructor.
        for name, value in [*zip(names, args, strict=False), *given.items()]:
            kind = kinds.get(name)
            if kind is not None and not kind.holds(value):
                raise refuse(f"{cls.__name__}.{name}", kind, value)
        return super().__new__(cls)


@cache
def _fields(cls: type[Any]) -> tuple[tuple[str, ...], dict[str, Allowed]]:
    """The settings of a class in their order, and what each may be."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    annotations: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        annotations |= hints(list(inspect.get_annotations(base)), inspect.get_annotations(base), scope)
    kinds = {field.name: allowed(annotations.get(field.name)) for field in fields}
    ordered = [*(field for field in fields if not field.kw_only), *(field for field in fields if field.kw_only)]
    return tuple(field.name for field in ordered), {name: kind for name, kind in kinds.items() if kind is not None}


def check_defaults(cls: type[Any]) -> None:
    """Raise a ValueError for a default that its own annotation does not let through."""
    _, kinds = _fields(cls)  # type: ignore[arg-type]
    for field in dataclasses.fields(cls):
        kind = kinds.get(field.name)
        if kind is not None and field.default is not dataclasses.MISSING and not kind.holds(field.default):
            raise refuse(f"the default of {cls.__name__}.{field.name}", kind, field.default)
