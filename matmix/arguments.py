"""Functions whose arguments are checked by their annotations before they run: what is no model, no batches, no number
is refused by its name, and not by what it lacks somewhere inside.

::

    @checking_arguments()
    def find(model: nn.Module, where: Where = "all", *, seed: Seed = 0) -> Sites: ...

    find(3)                     # ValueError: find: model must be a Module, got 3

For what a person calls now and then. It costs some microseconds, so no forward has it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from matmix.ranges import Allowed, allowed, hints, refuse

P = ParamSpec("P")
R = TypeVar("R")


def checking_arguments(leave: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse an argument that its annotation does not let through; ``matmix.ranges`` says how annotations are read.

    Args:
        leave: names of arguments that the function checks itself, in other words.

    Raises:
        ValueError: in a call, with the names of function and argument, what it may be, and what it was.
    """

    def checking(function: Callable[P, R]) -> Callable[P, R]:
        parameters = list(inspect.signature(function).parameters.values())
        placed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in leave]

        @functools.cache
        def kinds() -> dict[str, Allowed]:  # late: an annotation may be a class that comes after the function
            inner = inspect.unwrap(function)
            found = {
                name: allowed(kind, lists=True)
                for name, kind in hints(names, inner.__annotations__, inner.__globals__).items()
            }
            return {name: kind for name, kind in found.items() if kind is not None}

        @functools.wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            for name, value in [*zip(placed, args, strict=False), *options.items()]:
                kind = kinds().get(name)
                if kind is not None and not kind.holds(value):
                    raise refuse(f"{function.__name__}: {name}", kind, value)
            return function(*args, **options)

        return checked

    return checking
