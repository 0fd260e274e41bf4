"""Weights of others: renaming helpers for a family's ``published``, and telling the sources apart.

``matmix.load_published(model, state, source=...)`` is the strict way. ``adapt`` finds the source by itself, for
``create_model(..., pretrained=True)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from matmix.mixers import Mixer

State = dict[str, Tensor]


def rename(state: State, patterns: Sequence[tuple[str, str]]) -> State:
    """A state dict under other names: every pattern in turn, as ``re.sub`` on the whole name."""
    renamed: State = {}
    for name, value in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"two published entries would become {name}")
        renamed[name] = value
    return renamed


def mixer_states(model: nn.Module, state: State, source: str) -> State:
    """The entries of the mixers in their own naming: each converts what stands under its name.

    ``state`` has our names down to the mixer and the published ones below it. Mixers that do not know ``source`` are
    left as they are.
    """
    result = dict(state)
    for prefix, mixer in model.named_modules():
        convert = getattr(type(mixer), "published", {}).get(source) if isinstance(mixer, Mixer) else None
        if convert is None:
            continue
        head = f"{prefix}."
        own = {name[len(head) :]: result.pop(name) for name in list(result) if name.startswith(head)}
        result.update({head + name: value for name, value in convert(mixer, own).items()})
    return result


def unwrap(checkpoint: Any) -> State:
    """The state dict in a checkpoint file: ``{"state_dict": ...}``, ``{"model": ...}``, or the dict itself."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return {name.removeprefix("module."): value for name, value in checkpoint.items()}


def source_of(model: nn.Module, state: State) -> str | None:
    """Whose naming a state dict has: a key of ``published``, None for our own. A classifier may differ or lack.

    Raises:
        ValueError: if it is nobody's; the message says what does not match in the nearest one.
    """
    return _match(model, state)[0]


def adapt(checkpoint: Any, model: nn.Module) -> State:
    """A checkpoint of any known source as our state dict (timm calls this with what it has loaded)."""
    return _match(model, unwrap(checkpoint))[1]


def _match(model: nn.Module, state: State) -> tuple[str | None, State]:
    def body(names: Iterable[str]) -> set[str]:
        return {name for name in names if not name.startswith("head.fc")}

    ours, nearest, least = body(model.state_dict()), "our own naming", None
    published: dict[str | None, Any] = {None: lambda module, state: state, **getattr(type(model), "published", {})}
    for source, convert in published.items():
        try:
            converted = convert(model, dict(state))
        except (KeyError, ValueError, AttributeError):
            continue
        differ = ours ^ body(converted)
        if not differ:
            return source, converted
        if least is None or len(differ) < len(least):
            nearest, least = source or nearest, differ
    names = sorted(least or ())
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise ValueError(f"these are no weights of this {type(model).__name__}: read as {nearest}, {listed} do not match")
