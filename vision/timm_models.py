"""timm's own models beside ours: `timm:NAME` wherever a model is named."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from matmix.experiments.models import foreign
from vision.examples import Example, with_image

by_prefix = True
"""Ours are registered in timm too, so its models are looked for only where they are asked for."""


def create_model(name: str, /, **options: Any) -> nn.Module:
    """timm's model of that name.

    Raises:
        ValueError: for options that timm refuses.
    """
    with foreign("timm", name, options):
        made: nn.Module = timm.create_model(name, **options)
    return made


def list_models() -> list[str]:
    """All names in timm's registry."""
    return timm.list_models()


def example(name: str, options: dict[str, Any], *, img_size: tuple[int, ...] = ()) -> Example:
    """Build a model, and an image for it.

    Args:
        name: of the model.
        options: of the model.
        img_size: of the image, one number or height and width. Default: the model's own.
    """

    def create(name: str, /, **options: Any) -> nn.Module:
        try:
            return create_model(name, **options)
        except ValueError as error:  # a model that takes any size has no such option
            if "img_size" not in str(error):
                raise
            return create_model(name, **{key: value for key, value in options.items() if key != "img_size"})

    return with_image(create, name, options, img_size)
