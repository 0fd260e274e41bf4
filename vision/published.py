"""Weights of others: renaming helpers for a family's ``published``, and what timm asks for.

``matmix.load_published(model, state, source=...)`` is the strict way. ``adapt`` finds the source by itself, for
``create_model(..., pretrained=True)``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from matmix.mixers import Mixer
from matmix.published import find_source, unwrap

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


def adapt(checkpoint: Any, model: nn.Module) -> State:
    """A checkpoint of any known source as our state dict (timm calls this with what it has loaded, and fits the first
    convolution and the classifier itself).

    Raises:
        ValueError: if it is nobody's; the message says what does not match in the nearest one.
    """
    try:
        return find_source(model, unwrap(checkpoint), names_but="head.fc")[1]
    except ValueError as error:
        raise ValueError(f"these are no weights of this {type(model).__name__}: {error}") from None
