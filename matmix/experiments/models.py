"""Models by name, from any package that has some.

A package joins through the entry-point group `matmix.models`: an object (usually the package itself) with
`create_model(name, **options)` and `list_models()`. A model is written as its name, or as a call with options::

    caformer_s18
    convformer_s18(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256))
    timm:resnet18        from the package of that entry; timm must be named, since others register their models there

As in mixer specs, options are literals and nothing is evaluated.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from matmix.spec import parse_spec

BY_PREFIX = ("timm",)


def create_model(spec: str, **options: Any) -> nn.Module:
    """Build a model; `options` yield to those that the spec names itself.

    Raises:
        ValueError: for a spec that cannot be read, an unknown package or model (with the close names). An option that
            the model does not have is the package's own error.
    """
    package, name, own = read(spec)
    source = _package(package) if package else _owner(name)
    if name not in source.list_models() and name.partition(".")[0] not in source.list_models():
        raise ValueError(_unknown(spec, name, source.list_models()))
    return source.create_model(name, **{**options, **own})


def read(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Package ("" where none is named), name and options of a model spec."""
    found = re.fullmatch(r"(?:(\w+):)?([\w.\-]+)\s*(\(.*\))?", spec.strip(), re.DOTALL)
    if found is None:
        raise ValueError(f"model {spec!r} is not of the form name, package:name or name(option=value, ...)")
    package, name, call = found.groups()
    (parsed,) = parse_spec(f"model{call or ''}")
    if parsed.args:
        raise ValueError(f"model {spec!r}: options are given by name, as in {name}(img_size=224)")
    return package or "", name, dict(parsed.options)


@cache
def _entries() -> dict[str, Any]:
    return {entry.name: entry for entry in sorted(entry_points(group="matmix.models"), key=lambda e: e.name)}


def _package(name: str) -> Any:
    if name not in _entries():
        raise ValueError(f"unknown package of models {name!r}; installed: {', '.join(_entries()) or 'none'}")
    try:
        return _entries()[name].load()
    except ImportError as error:
        raise ValueError(f"the models of {name!r} cannot be imported: {error}") from error


def _owner(name: str) -> Any:
    """The package that has the model, asked in alphabetical order."""
    packages = [_package(entry) for entry in _entries() if entry not in BY_PREFIX]
    for package in packages:
        if name in package.list_models():
            return package
    raise ValueError(_unknown(name, name, [known for package in packages for known in package.list_models()]))


def _unknown(spec: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else f"; there are {len(known)} models"
    return f"unknown model {spec!r}{hint}"
