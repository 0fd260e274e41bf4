"""Which classes and mixers the laws run on, and at which sizes.

Nothing is listed by hand: matrices are the subclasses of Matrix, mixers the entries of the registry. Classes that the
tests define themselves (tests/wrong) are subclasses too; they are told apart by their module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

import matmix
from matmix.matrices import Matrix, all_classes
from matmix.mixers import MixerInfo
from matmix.testing import MixerCase
from matmix.testing.check import traits_of
from matmix.testing.mixer_laws import TRACED

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,  # the same sizes in every run: a failure is a fact, not weather
    "print_blob": False,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
    "suppress_health_check": list(HealthCheck),
}
QUICK = settings(max_examples=5, **COMMON)
MANY = settings(max_examples=40, **COMMON)


def matrix_classes() -> list[type[Matrix]]:
    """Every matrix class outside the tests."""
    return [cls for cls in all_classes() if cls.__module__.split(".")[0] != "tests"]


def pairs(laws: dict[str, Callable[..., None]], subjects: list[Any], *, traced: bool) -> tuple[list[Any], list[str]]:
    """(law, subject) pairs and their ids ``law-Subject``; traced laws apart, since they run at one size."""
    named = [(s, s if isinstance(s, str) else s.__name__) for s in subjects]
    chosen = [(law, s, f"{law}-{name}") for s, name in named for law in laws if (law in TRACED) == traced]
    return [(law, s) for law, s, _ in chosen], [name for *_, name in chosen]


def mixer_names() -> list[str]:
    """Every registered mixer."""
    return matmix.list_mixers()


def skip_if_rows_are_read(factory: Callable[[int, Any], matmix.Mixer], dim: int, why: str) -> None:
    """Skip a test of a sequence where a mixer does to an image just what it does to its rows in a row: the same code
    ran on the image."""
    if traits_of(factory, dim).dims != {1, 2}:
        return
    line, image = (MixerCase(factory, dim, grid) for grid in ((15,), (3, 5)))
    with torch.no_grad():
        if torch.equal(line.build()(line.tokens()), image.build()(image.tokens())):
            pytest.skip(f"reads an image row by row: {why}")


def variants() -> dict[str, Callable[[int, Any], matmix.Mixer]]:
    """Every registered mixer with one option changed: each bool turned over, each word of a Literal in turn, and what
    its registration names besides.

    An option that a mixer refuses by ValueError in its smallest form is left out when it is built.
    """
    found: dict[str, Callable[[int, Any], matmix.Mixer]] = {}
    for name in mixer_names():
        info = matmix.mixer_info(name)
        hints = get_type_hints(info.cls.__init__)
        for option, parameter in inspect.signature(info.cls).parameters.items():
            kind, usual = hints.get(option), info.smallest.get(option, parameter.default)
            values = (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
            for value in values:
                if value != usual:
                    found[f"{name}({option}={value!r})"] = _with(info, {option: value})
        for changed in info.variants:
            words = ", ".join(f"{option}={value!r}" for option, value in changed.items())
            found[f"{name}({words})"] = _with(info, changed)
    return found


def _with(info: MixerInfo, changed: dict[str, Any]) -> Callable[[int, Any], matmix.Mixer]:
    options = {k: v for k, v in info.smallest.items() if k not in ("dim", "args")}
    return lambda dim, grid: info.cls(dim, grid, *info.smallest.get("args", ()), **{**options, **changed})
