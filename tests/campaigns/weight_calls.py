"""Bad calls to ``load_published``: for every mixer that knows published weights, state dicts that are not quite right.

A good state dict is found by asking: from our own names on, what a source says to be missing is added, and what it says
to be left over is taken away. Where that does not end in one that loads (names alone do not tell every shape), the
calls go from the nearest.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import matmix
from tests.campaigns.mixer_calls import mixer_at
from tests.campaigns.odd import Call, bent, short, thing

NAMES = ("source", "state_dict", "missing", "unexpected", "left over", "wrong shape", "complex", "whole numbers",
         "without numbers", "names", "entries")  # fmt: skip


def calls(seed: int) -> Iterator[Call]:
    """Endless; every mixer and source in turn."""
    draw = random.Random(seed)
    while True:
        for name, image, source in draw.sample(_sources(), len(_sources())):
            yield _call(draw, mixer_at(name, image), source, _nearest(name, image, source))


@cache
def _sources() -> list[tuple[str, bool, str]]:
    found = []
    for name in matmix.list_mixers():
        cls = matmix.mixer_info(name).cls
        if cls.__module__.startswith("matmix."):
            found += [(name, image, source) for source in getattr(cls, "published", {}) for image in (False, True)]
    return found


@cache
def _nearest(name: str, image: bool, source: str) -> dict[str, Tensor]:
    """The state dict of that source which comes nearest to loading."""
    module = mixer_at(name, image)
    shapes = [tuple(value.shape) for value in module.state_dict().values()]
    state = {key: torch.randn(value.shape) for key, value in module.state_dict().items()}
    for turn in range(40):
        try:
            matmix.load_published(module, state, source)
            break
        except ValueError as error:
            message = str(error)
        missing = re.search(r"missing: ([^;]+)", message)
        surplus = re.search(r"(?:left over|unexpected): ([^;]+)", message)
        if missing:
            for key in missing[1].split(", "):
                state[key] = torch.randn(shapes[turn % len(shapes)])
        elif surplus:
            for key in surplus[1].split(", "):
                state.pop(key, None)
        else:
            break
    return state


def _call(draw: random.Random, module: nn.Module, source: str, good: dict[str, Tensor]) -> Call:
    state: Any = dict(good)
    given: Any = source
    keys = sorted(state)
    key = draw.choice(keys) if keys else "weight"
    way = draw.randrange(9)
    if way == 0:
        state.pop(key, None)
    elif way == 1:
        state[draw.choice(("extra", "module." + key, "", key + ".weight"))] = torch.randn(2)
    elif way in (2, 3, 4) and keys:
        state[key] = bent(draw, state[key])
    elif way == 5:
        state = draw.choice((thing(draw), list(state.items()), {"state_dict": state}, nn.Linear(2, 2), set(state)))
    elif way == 6:
        given = draw.choice((thing(draw), source.upper(), source.split("/")[-1], "timm"))
    elif way == 7:
        state = {draw.choice((key, 3, None, ("a",), b"x")): thing(draw), **draw.choice((state, {}))}
    else:
        arrays = {k: v.numpy() for k, v in state.items()}
        wrong = draw.choice((np.zeros(3, dtype=object), np.array("x"), np.zeros(0), np.zeros(3, dtype="M8[s]")))
        state = {**arrays, key: wrong}
    before = {k: v.clone() for k, v in module.state_dict().items()}

    def right(result: Any) -> str:
        loaded = result is module and all(v.isfinite().all() for v in module.state_dict().values())
        return "" if loaded else "loaded something else"

    def run() -> Any:
        try:
            return matmix.load_published(module, state, given)
        except ValueError:
            after = module.state_dict()
            assert all(torch.equal(after[k], v) for k, v in before.items()), "refused, and changed"
            raise

    what = f"{short(state)[:80]}, {short(given)}" if way in (5, 6) else f"{key}, way {way}, {short(given)}"
    return Call(f"{type(module).__name__}.load_published({what})", run, NAMES, (), right)
