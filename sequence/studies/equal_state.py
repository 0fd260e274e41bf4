"""Mixers that keep equally many bytes of a sequence: what is compared then is how the state is used, not its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from matmix.cost import state_bytes
from matmix.mixers import create_mixer
from matmix.spec import Spec, parse_spec

CLOSE = 0.1
"""The largest share by which a state may miss the size that was asked for."""


def _d_state(n: int, dim: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"d_state": 2 * n}  # of pairs, since some are complex numbers and their conjugates


def _rotated(n: int, dim: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"d_state": 4 * n}  # half of it are pairs that are turned


def _expand_k(n: int, dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Keys of n channels a head; values stay as wide as they are. Pairs, since rotary positions turn pairs."""
    return {"expand_k": 2 * n * options["heads"] / dim}


SIZED: dict[str, Callable[[int, int, dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(("ssd", "s6", "s4d"), _d_state),
    "mamba3": _rotated,
    **dict.fromkeys(("delta_rule", "gla", "simple_gla", "retention"), _expand_k),
}
"""Options that set the size of a state, by mixer, for a number of units that it grows with linearly."""


def equal_state(spec: str, size: int, dim: int) -> str:
    """The spec of this mixer whose state is nearest to so many bytes, in float32.

        equal_state("ssd", 16_384, 128)  # "ssd(d_state=8)"

    The state is `matmix.cost.state_bytes` of one mixer: with the window of a short convolution that it has inside,
    without one that a model has in front of it. Of what the spec says only the option is changed that sizes the state:
    d_state, or expand_k of those with keys and values.

    Args:
        spec: one mixer of `SIZED`, with any of its options.
        size: bytes that it keeps of one sequence.
        dim: width of the model.

    Raises:
        ValueError: for a mixer whose state has no fixed size that an option sets (attention keeps all tokens), and
            where no value of the option comes within 10 % of the size.
    """
    (found,) = parse_spec(spec)
    if found.name not in SIZED:
        raise ValueError(f"spec must be of a mixer with a state of a set size ({', '.join(SIZED)}), got {spec!r}")
    given = {"heads": getattr(create_mixer(found.name, dim), "heads", 1), **dict(found.options)}

    def sized(n: int) -> str:
        changed = dict(found.options) | SIZED[found.name](n, dim, given)
        return str(Spec(found.name, found.args, tuple(changed.items())))

    def kept(n: int) -> int:
        bytes_ = state_bytes(create_mixer(sized(n), dim), torch.zeros(1, 1, dim))
        assert bytes_ is not None
        return bytes_

    least, more = kept(1), kept(2)
    n = max(1, round(1 + (size - least) / (more - least)))
    if abs(kept(n) - size) > CLOSE * size:
        raise ValueError(
            f"size={size} bytes must be near what {spec!r} can keep at dim={dim}: {kept(n):,}, or {kept(n + 1):,}"
        )
    return sized(n)


def equal_states(specs: Iterable[str], size: int, dim: int) -> dict[str, str]:
    """`equal_state` of all that have a state of a set size, by their specs; others stay as they are."""
    return {spec: equal_state(spec, size, dim) for spec in specs if parse_spec(spec)[0].name in SIZED}
