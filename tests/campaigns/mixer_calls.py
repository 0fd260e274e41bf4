"""Bad calls to every registered mixer: its constructor and each of its methods."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import matmix
from matmix.matrices import Matrix
from matmix.mixers import Mixer
from matmix.testing import MixerCase, factory_of
from tests.campaigns.odd import Call, bent, short, thing

BATCH = 2


@cache
def _case(name: str, image: bool) -> MixerCase:
    info = matmix.mixer_info(name)
    factory, dim = factory_of(info)
    dims = info.cls.traits.dims if name != "heads" else {1, 2}
    grid = (3, 4) if 2 in dims and (image or 1 not in dims) else (12,)
    return MixerCase(factory, dim, grid, BATCH)


@cache
def mixer_at(name: str, image: bool) -> Mixer:
    """A mixer at its smallest, in float32; on an image if it takes one and is asked to."""
    return _case(name, image).build(torch.float32)


def calls(seed: int) -> Iterator[Call]:
    """Endless; every mixer and every kind of call in turn."""
    draw = random.Random(seed)
    names = [n for n in matmix.list_mixers() if matmix.mixer_info(n).cls.__module__.startswith("matmix.")]
    kinds = (_build, _build, _tokens, _tokens, _around, _around, _step, _step, _begin, _resize)
    while True:
        for name in draw.sample(names, len(names)):
            yield draw.choice(kinds)(draw, name)


def _build(draw: random.Random, name: str) -> Call:
    info = matmix.mixer_info(name)
    options = {"dim": 8, "grid": _case(name, False).grid, **info.smallest}
    args = options.pop("args", ())
    option = draw.choice([p.name for p in inspect.signature(info.cls).parameters.values() if p.name != "specs"])
    value, unknown = thing(draw), False
    if draw.random() < 0.1:
        option, value, unknown = draw.choice(("window_size", "nheads", "dimension", "**", "")), 1, True
    elif draw.random() < 0.3 and isinstance(options.get(option), int):
        value = options[option] + draw.choice((-1, 1, 2, 7))
    if args and draw.random() < 0.5:
        option, value, args = "specs", args, tuple(draw.choice((*args, thing(draw))) for _ in range(draw.randrange(4)))
    else:
        options[option] = value

    def run() -> Any:
        with torch.device("meta"):
            return info.cls(options.pop("dim"), options.pop("grid"), *args, **options)

    # A width may be refused by an option that does not divide it; parts speak for themselves.
    free = option in ("dim", "specs", "spec")
    given = ", ".join(map(short, args)) or f"{option}={short(value)}"
    return Call(f"{name}.build({given})", run, () if free else (option,), () if free or unknown else (value,))


def _tensors(name: str, image: bool) -> tuple[Mixer, Tensor]:
    mixer = mixer_at(name, image)
    return mixer, _case(name, image).tokens(torch.float32)


def _fits(x: Tensor) -> Callable[[Any], str]:
    def right(result: Any) -> str:
        if isinstance(result, Matrix):
            return "" if result.shape[0] in (1, x.shape[0]) else "a matrix of another batch"
        out = result[0] if isinstance(result, tuple) else result
        return "" if out.shape == x.shape and out.dtype == x.dtype else "an output that is not like x"

    return right


def _tokens(draw: random.Random, name: str) -> Call:
    """Tokens that are none."""
    mixer, x = _tensors(name, draw.random() < 0.5)
    method = draw.choice(("forward", "matrix", "prefill"))
    wrong = bent(draw, x)
    floats = isinstance(wrong, Tensor) and wrong.is_floating_point() and not wrong.is_nested
    right = _fits(wrong) if floats else None
    return Call(
        f"{name}.{method}({short(wrong)})",
        _call(mixer, method, wrong),
        ("x", "grid", "recurrent"),
        (wrong, *([f"{wrong.shape[1]}"] if floats and wrong.dim() > 1 else []), "recurrent"),
        right,
    )


def _call(mixer: Mixer, method: str, *args: Any, **options: Any) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return (mixer if method == "forward" else getattr(mixer, method))(*args, **options)

    return run


def _around(draw: random.Random, name: str) -> Call:
    """Tokens with a wrong grid, mask, segments or state."""
    mixer, x = _tensors(name, draw.random() < 0.5)
    length = x.shape[1]
    option = draw.choice(("grid", "mask", "segments", "state"))
    method = "prefill" if option == "state" else draw.choice(("forward", "matrix"))
    if option == "grid":
        value = draw.choice(
            (thing(draw), (length + 1,), (length, 1, 1), (5, 5), (length, -1), (12.0,), (True, 12), "12")
        )
    elif option == "state":
        value = _state(draw, mixer)
    else:
        plain = torch.ones(BATCH, length, dtype=torch.bool if option == "mask" else torch.int64)
        value = bent(draw, plain)
    if option == "grid":
        may = True
    elif option == "state":
        may = value is None or (mixer.traits.recurrent and _is_state(mixer, value, BATCH))
    else:
        may = value is None or _whole(value, option)
    return Call(
        f"{name}.{method}({option}={short(value)})",
        _call(mixer, method, x, **{option: value}),
        (option, "recurrent"),
        (value, *_leaves(value), "recurrent", str(math.prod(mixer.grid or (0,))), "takes no"),
        _fits(x) if may else None,
    )


def _whole(value: Any, option: str) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.dtype == torch.bool if option == "mask" else not value.is_floating_point() and not value.is_complex()


def _state(draw: random.Random, mixer: Mixer) -> Any:
    """A state that is somebody else's, or bent in one of its tensors."""
    recurrent = [n for n in matmix.list_mixers() if matmix.mixer_info(n).cls.traits.recurrent]
    way = draw.randrange(5)
    if way == 0:
        return thing(draw)
    try:
        state = mixer.init_state(BATCH)
    except NotImplementedError:
        return thing(draw)
    if way == 1:
        return mixer_at(draw.choice(recurrent), False).init_state(BATCH)
    if way == 2:
        return mixer.init_state(draw.choice((0, 1, 3)))
    leaves, form = pytree.tree_flatten(state)
    place = draw.randrange(len(leaves))
    leaves[place] = bent(draw, leaves[place])
    if way == 3:
        return leaves
    return pytree.tree_unflatten(leaves, form)


def _leaves(value: Any) -> list[Any]:
    """Of a state or a grid, what a message may show."""
    return [leaf if isinstance(leaf, Tensor | int) else type(leaf) for leaf in pytree.tree_leaves(value)]


def _is_state(mixer: Mixer, state: Any, batch: int) -> bool:
    """Whether it has the form, the sizes and the kinds of numbers of the mixer's own; what is empty may have grown."""
    wanted, form = pytree.tree_flatten(mixer.init_state(batch))
    given, other = pytree.tree_flatten(state)
    return form == other and all(
        isinstance(g, Tensor)
        and not g.is_nested
        and g.dim() == w.dim()
        and all(n in (0, m) for n, m in zip(w.shape, g.shape, strict=True))
        and (g.is_floating_point(), g.is_complex()) == (w.is_floating_point(), w.is_complex())
        for w, g in zip(wanted, given, strict=True)
    )


def _step(draw: random.Random, name: str) -> Call:
    mixer, x = _tensors(name, False)
    token = x[:, 0]
    try:
        state = mixer.init_state(BATCH)
    except NotImplementedError:
        state = None
    if draw.random() < 0.5:
        wrong = bent(draw, token)
        # Of another batch, the token and the state are as wrong as each other.
        text, args, names, value = f"{name}.step({short(wrong)})", (wrong, state), ("x", "recurrent", "state"), wrong
    else:
        wrong = _state(draw, mixer)
        text, args, names, value = f"{name}.step(state={short(wrong)})", (token, wrong), ("state", "recurrent"), wrong
    floats = isinstance(args[0], Tensor) and args[0].is_floating_point() and not args[0].is_nested
    may = floats and mixer.traits.recurrent and _is_state(mixer, args[1], len(args[0]))
    return Call(
        text,
        _call(mixer, "step", *args),
        names,
        (value, *_leaves(value), "recurrent"),
        _fits(args[0]) if may else None,
    )


def _begin(draw: random.Random, name: str) -> Call:
    mixer, _ = _tensors(name, False)
    batch = thing(draw)
    right = None if type(batch) is not int or batch < 0 else lambda state: ""
    return Call(f"{name}.init_state({short(batch)})", _call(mixer, "init_state", batch), ("batch", "recurrent"),
                (batch, "recurrent"), right)  # fmt: skip


def _resize(draw: random.Random, name: str) -> Call:
    image = draw.random() < 0.5
    case = _case(name, image)
    grid = draw.choice((thing(draw), (0,), (-3, 4), (2.0,), (5, 5, 5), "12", (3, "4"), (True,), None))

    def run() -> Mixer:
        return case.build(torch.float32).resize_(grid)

    return Call(f"{name}.resize_({short(grid)})", run, ("grid",), (grid,))
