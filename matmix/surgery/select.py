"""select: which sites are meant, in the words that people know from PEFT and torchao."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matmix.adapters import KINDS, Site
from matmix.ranges import shown
from matmix.spec import close_names, hint

Where = str | Site | Callable[[Site], bool] | Iterable["str | Site | Callable[[Site], bool]"]


def select(
    sites: Sequence[Site],
    where: Where = "all",
    *,
    exclude: Where | None = None,
    layers: int | Iterable[int] | slice | None = None,
) -> list[Site]:
    """The sites that are meant, in the order given.

    Args:
        sites: of a model.
        where: ``"all"``; a kind (``"self_attention"``); a name or its end at a dot (``"attn"``, ``"blocks.3.attn"``;
            a site that has exactly this name is meant alone); a glob or a regular expression for a whole name
            (``"blocks.*.attn"``, ``r"blocks\\.[02]\\.attn"``); a function of a site; a ``Site``; or several of these.
        exclude: those left out, in the same words.
        layers: numbers of layers, or a slice of them: a site's layer is the first number in its name.

    Raises:
        ValueError: where one of the words, or the whole, matches nothing; the message names the close ones.
        TypeError: for anything else.
    """
    chosen = {site.name for site in _each(sites, where, "where")}
    if layers is not None:
        chosen &= {site.name for site in _layers(sites, layers)}
    if exclude is not None:
        chosen -= {site.name for site in _each(sites, exclude, "exclude")}
    if not chosen:
        raise ValueError(
            f"no site is left of where={where!r} with layers={layers!r} and exclude={exclude!r}; "
            f"there are {', '.join(site.name for site in sites) or 'none'}"
        )
    return [site for site in sites if site.name in chosen]


def _each(sites: Sequence[Site], where: Where, word: str) -> list[Site]:
    """Sites that one of several words means; a word that means none is an error, others or not."""
    parts = [where] if isinstance(where, str | Site) or callable(where) else where
    if not isinstance(parts, Iterable):
        raise TypeError(f"{word} must be a name, kind, pattern, Site, function or several of these, got {where!r}")
    found: list[Site] = []
    for part in parts:
        matched = _one(sites, part, word)
        if not matched:
            raise ValueError(_nothing(sites, part, word))
        found += matched
    return found


def _one(sites: Sequence[Site], part: object, word: str) -> list[Site]:
    if isinstance(part, Site):
        return [site for site in sites if part.name in site.names]
    if callable(part) and not isinstance(part, type):
        return [site for site in sites if part(site)]
    if not isinstance(part, str):
        raise TypeError(f"{word} must be made of names, kinds, patterns, sites or functions, got {part!r}")
    if part == "all":
        return list(sites)
    if part in KINDS:
        return [site for site in sites if site.kind == part]
    exact = [site for site in sites if part in site.names]
    return exact or [site for site in sites if any(_matches(name, part) for name in site.names)]


def _matches(name: str, pattern: str) -> bool:
    if name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except (re.error, OverflowError, RecursionError):  # a glob such as *.attn is no regular expression
        return False


def _layers(sites: Sequence[Site], layers: int | Iterable[int] | slice) -> list[Site]:
    numbers = {site.name: int(n[0]) for site in sites if (n := re.findall(r"(?:^|\.)(\d+)(?=\.|$)", site.name))}
    count = max(numbers.values(), default=-1) + 1
    if isinstance(layers, slice):
        wanted = set(range(count)[layers])
    else:
        asked: list[Any] = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
        if not all(type(n) is int for n in asked):
            raise TypeError(f"layers must be whole numbers or a slice of them, got {shown(layers)}")
        wanted = {n + count if n < 0 else n for n in asked}
        missing = [n for n in asked if (n + count if n < 0 else n) not in numbers.values()]
        if missing:
            raise ValueError(f"layers {missing} have no site; there are {sorted(set(numbers.values()))}")
    return [site for site in sites if numbers.get(site.name) in wanted]


def _nothing(sites: Sequence[Site], part: object, word: str) -> str:
    if not sites:
        return "the model has no site: no module in which tokens mix is known to an adapter"
    if not isinstance(part, str):
        shown = part.name if isinstance(part, Site) else getattr(part, "__name__", repr(part))
        return f"{word}: {shown!r} matches no site; there are {', '.join(site.name for site in sites)}"
    ends = [".".join(site.name.split(".")[-n:]) for n in (1, 2) for site in sites]
    names = [site.name for site in sites]
    words = list(dict.fromkeys([*names, *ends, *KINDS]))
    return f"{word}={part!r} matches no site{hint(part, words if close_names(part, words) else names)}"
