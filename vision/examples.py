"""One image for a model, as `matmix cost` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vision.registry import create_model

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def example(name: str, options: dict[str, Any], *, img_size: tuple[int, ...] = ()) -> Example:
    """Build a model, and an image for it.

    Args:
        name: of the model.
        options: of the model.
        img_size: of the image, one number or height and width. Default: the model's own.
    """
    return with_image(create_model, name, options, img_size)


def with_image(
    create: Callable[..., nn.Module], name: str, options: dict[str, Any], img_size: tuple[int, ...]
) -> Example:
    """A model made by `create`, and an empty image of this size or the model's own."""
    if len(img_size) > 2 or any(side < 1 for side in img_size):
        raise ValueError(f"--img-size is one positive number or two, got {' '.join(map(str, img_size))}")
    size = img_size * 2 if len(img_size) == 1 else img_size
    made = create(name, **{**({"img_size": size} if size else {}), **options})
    channels, *own = made.pretrained_cfg["input_size"]  # type: ignore[index]
    where = tuple(size or getattr(made, "img_size", own))
    return made, (torch.zeros(1, getattr(made, "in_chans", channels), *where),), {}
