"""Things that are no argument of anything, for campaigns of bad calls, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.campaigns.clear import Tally


@dataclass(frozen=True)
class Call:
    """One call that may be wrong.

    ``right`` looks at what came back and says what is wrong with it, "" where nothing is; None: nothing is right, the
    call must be refused.
    """

    text: str
    run: Callable[[], Any]
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    right: Callable[[Any], str] | None = lambda result: ""


class _Thing:
    def __repr__(self) -> str:
        return "thing"


def _things() -> list[Any]:
    return [
        None, True, False, 0, 1, -1, 3, 2.5, float("nan"), float("inf"), 2**40, 10**400, 1j, "", "x", "False", b"x", (),
        [], {}, set(), (1,), [2, 3], (-1, 2), ("a",), (0.5, 0.5), (None, None), {"a": 1}, _Thing(), _Thing, len,
        np.zeros(3), np.float32(2), np.int64(2), torch.zeros(3), torch.tensor(3), torch.zeros(2, 3, 4), torch.float32,
        torch.device("cpu"), range(3), slice(None), ..., frozenset({1}), bytearray(2),
    ]  # fmt: skip


THINGS = _things()


def thing(draw: random.Random) -> Any:
    """Anything at all."""
    return draw.choice(THINGS)


def short(value: Any) -> str:
    """A value in the text of a call."""
    if isinstance(value, Tensor):
        return f"<{'x'.join(map(str, value.shape)) if not value.is_nested else 'nested'} {value.dtype} {value.device}>"
    try:
        return repr(value)[:60]
    except ValueError:  # too many digits
        return f"<{type(value).__name__}>"


def bent(draw: random.Random, tensor: Tensor) -> Tensor | Any:
    """A tensor changed in one way: axes, sizes, kind of numbers, device, layout, or something that is no tensor."""
    rank = tensor.dim()
    axis = draw.randrange(rank) if rank else 0
    ways: list[Callable[[], Any]] = [
        lambda: thing(draw),
        lambda: tensor.unsqueeze(axis),
        lambda: tensor.long(),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(draw.choice((torch.float16, torch.bfloat16, torch.float64, torch.float32))),
        lambda: tensor.to("meta"),
        lambda: tensor.detach().numpy() if not tensor.is_meta else thing(draw),
        lambda: tensor.tolist() if not tensor.is_meta else thing(draw),
        lambda: tensor.to_sparse() if rank and not tensor.is_meta else None,
        lambda: tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor.float(),
        lambda: torch.nested.nested_tensor(list(tensor)) if rank > 1 and not tensor.is_meta else None,
    ]
    if rank:
        ways += [
            lambda: tensor.select(axis, 0) if tensor.shape[axis] else tensor,
            lambda: tensor.narrow(axis, 0, 0),
            lambda: tensor.narrow(axis, 0, max(tensor.shape[axis] - 1, 0)),
            lambda: torch.cat((tensor, tensor), axis),
            lambda: tensor.flatten(),
            lambda: tensor.transpose(axis, draw.randrange(rank)),
        ]
    return draw.choice(ways)()


def count(calls: Iterator[Call], number: int) -> Tally:
    """Make that many calls and count how they are answered."""
    tally = Tally()
    for _, call in zip(range(number), calls, strict=False):
        try:
            result = call.run()
            wrong = "taken" if call.right is None else call.right(result)
        except Exception as error:
            tally.refused(error, call.text, call.names, call.values)
            continue
        if wrong:
            tally.wrong(f"{wrong}: {call.text.split('(')[0].split('.')[-1]}", call.text)
        else:
            tally.right += 1
    return tally
