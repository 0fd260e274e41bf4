"""Models by name, from any package that has some.

A package joins through the entry-point group `matmix.models`: an object (usually the package itself) with

    create_model(name, **options)
    list_models()
    example(name, options, *, ...)    optional, for `matmix cost`: builds the model with these options and returns it
                                      with the positional and the keyword arguments of one example; its own keyword
                                      arguments, typed and with defaults, are options of the command
    by_prefix = True                  optional: its models are found only where the package is named, as in `lab:name`

A model is written as its name, or as a call with options::

    caformer_s18
    convformer_s18(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256))
    timm:resnet18

As in mixer specs, options are literals and nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import EntryPoint
from typing import Any

from torch import nn

from matmix.experiments.entries import entries
from matmix.experiments.extras import advice
from matmix.ranges import shown
from matmix.spec import hint, parse_spec

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model, and the positional and the named arguments of one call."""


def create_model(spec: str, **options: Any) -> nn.Module:
    """Build a model; `options` yield to those that the spec names itself.

    Raises:
        ValueError: for a spec that cannot be read, an unknown package or model (with the close names). An option that
            the model does not have is the package's own error.
    """
    source, name, own = _find(spec)
    model: nn.Module = source.create_model(name, **{**options, **own})
    return model


@contextmanager
def foreign(package: str, name: str, options: dict[str, Any], *more: type[Exception]) -> Iterator[None]:
    """Within, a library builds a model: what it says of options that it does not take is one ValueError of one line.

    Args:
        more: kinds of errors that are the library's own.
    """
    kinds: tuple[type[Exception], ...] = (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, *more,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        said = str(error).strip().partition("\n")[0]
        given = ", ".join(f"{option}={shown(value)}" for option, value in options.items()) or "none"
        raise ValueError(f"{package}:{name} must be given options that {package} takes, got {given}: {said}") from error


def example(spec: str) -> Callable[..., Example]:
    """The function that builds a model and the arguments of one example for it.

    Raises:
        ValueError: as `create_model`, and for a package that has no examples.
    """
    source, name, own = _find(spec)
    if not hasattr(source, "example"):
        raise ValueError(f"model {spec!r}: its package says no example input (see matmix.experiments.models)")
    return partial(source.example, name, own)


def as_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of an example as `matmix.surgery` takes an input: a tuple of them, or a dict by name.

    Raises:
        ValueError: for arguments of both sorts.
    """
    if args and kwargs:
        raise ValueError("an example with positional and named arguments: its package should name all of them")
    return kwargs or args


def _find(spec: str) -> tuple[Any, str, dict[str, Any]]:
    """The package of a model, its name there, and the options of the spec."""
    package, name, own = read(spec)
    source = _package(package) if package else _owner(name)
    known = source.list_models()
    if name not in known and name.partition(".")[0] not in known:
        raise ValueError(f"unknown model {shown(spec)}{hint(name, known)}")
    return source, name, own


def read(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Package ("" where none is named), name and options of a model spec."""
    if not isinstance(spec, str):
        raise ValueError(f"model must be a name or a call with options, got {shown(spec)}")
    found = re.fullmatch(r"(?:(\w+):)?([\w.\-]+)\s*(\(.*\))?", spec.strip(), re.DOTALL)
    if found is None:
        raise ValueError(f"model {shown(spec)} is not of the form name, package:name or name(option=value, ...)")
    package, name, call = found.groups()
    (parsed,) = parse_spec(f"model{call or ''}")
    if parsed.args:
        raise ValueError(f"model {spec!r}: options are given by name, as in {name}(option=value)")
    return package or "", name, dict(parsed.options)


@cache
def _entries() -> dict[str, EntryPoint]:
    return entries("matmix.models")


def _package(name: str) -> Any:
    if name not in _entries():
        raise ValueError(f"unknown package of models {name!r}{hint(name, _entries())}")
    entry = _entries()[name]
    try:
        return entry.load()
    except ImportError as error:
        package = entry.dist.name if entry.dist is not None else "matmix"
        raise ValueError(f"the models of {name!r} cannot be imported: {advice(error, package)}") from error


def _owner(name: str) -> Any:
    """The package that has the model, asked in alphabetical order."""
    packages = [package for package in map(_package, _entries()) if not getattr(package, "by_prefix", False)]
    for package in packages:
        if name in package.list_models():
            return package
    raise ValueError(
        f"unknown model {shown(name)}{hint(name, [known for each in packages for known in each.list_models()])}"
    )
