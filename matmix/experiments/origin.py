"""Where the code of a class comes from: part of what a run is, unless it is matmix's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from matmix.experiments.plugins import contents, own_packages
from matmix.spec import parse_spec


def origins(cls: type, mixer: str) -> dict[str, str]:
    """Name -> contents of the code behind a task and the mixers of a spec, where it is not matmix's own.

    Of a file or a module it is the checksum; of a package that is installed its version, since what stands under a
    number does not change (one that is installed for development, from a checkout, has a checksum). A mixer that is not
    registered here has none.
    """
    found: dict[str, str] = {}
    for one in (cls, *_mixers(mixer)):
        found.update(_origin(one))
    return found


def _origin(cls: type) -> dict[str, str]:
    module = sys.modules.get(cls.__module__)
    package = cls.__module__.partition(".")[0]
    file = getattr(module, "__file__", None)
    if package in own_packages() or file is None:
        return {}
    released = _release(package, file)
    if released:
        return released
    name = cls.__module__
    if name.startswith(("_matmix_", "__m")):  # a file that was imported by its path, or that Python was started with
        return {Path(file).name: contents(file)}
    return {name: contents(name)}


@cache
def _release(package: str, file: str) -> dict[str, str]:
    """The distribution that a module is of, and its version, where it lies among the installed ones."""
    if not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return {}
    try:
        return {name: version(name) for name in packages_distributions().get(package, ())[:1]}
    except PackageNotFoundError:
        return {}


def _mixers(spec: str) -> Iterator[type]:
    """The classes of all mixers that a spec names, those in its arguments too."""
    from matmix.mixers import list_mixers, mixer_info

    known = set(list_mixers())
    yield from (mixer_info(name).cls for name in _names(spec) if name in known)


@lru_cache(maxsize=1000)
def _names(spec: str) -> tuple[str, ...]:
    """Names in a spec, in its arguments too."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str) and value:
            try:
                calls = parse_spec(value)
            except ValueError:  # a word that is none
                return
            for call in calls:
                yield call.name
                for part in (*call.args, *(option for _, option in call.options)):
                    yield from inside(part)
        elif isinstance(value, list | tuple):
            for part in value:
                yield from inside(part)

    return tuple(dict.fromkeys(inside(spec)))
