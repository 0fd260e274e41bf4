"""Models of transformers by the name of their configuration: `hf:bert(num_hidden_layers=2)` wherever a model is named.

Weights are random; `pretrained="folder or name"` takes those of a checkpoint, with its configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

from matmix.experiments.models import foreign

by_prefix = True
"""Names such as `vit` are too common to be found without `hf:`."""


def create_model(name: str, /, pretrained: str = "", **options: Any) -> nn.Module:
    """The library's base model of a configuration, without a head.

    Raises:
        ValueError: for a configuration that has no such model, or that refuses its options.
    """
    given = {**({"pretrained": pretrained} if pretrained else {}), **options}
    with foreign("hf", name, given, OSError, ImportError, StrictDataclassError):
        if pretrained:
            made: nn.Module = AutoModel.from_pretrained(pretrained, **options)
            if made.config.model_type != name:  # type: ignore[union-attr]
                raise ValueError(f"{pretrained} is a {made.config.model_type!r}")  # type: ignore[union-attr]
            return made
        return AutoModel.from_config(AutoConfig.for_model(name, **options))


def list_models() -> list[str]:
    """All configurations of the library that is installed."""
    return sorted(CONFIG_MAPPING_NAMES)


def example(
    name: str, options: dict[str, Any], *, length: int = 64
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Build a model, and an input for it: random words, an empty image, or a silent sound.

    Args:
        name: of the configuration.
        options: of the configuration, or `pretrained=`.
        length: of a text.
    """
    model: Any = create_model(name, **options).eval()
    config, wanted = model.config, model.main_input_name
    if wanted == "pixel_values":
        size = config.image_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return model, (), {wanted: torch.zeros(1, getattr(config, "num_channels", 3), rows, columns)}
    if wanted != "input_ids":
        raise ValueError(f"hf:{name} takes {wanted}, for which no example is known: use matmix.surgery in Python")
    words = getattr(config, "vocab_size", None) or config.get_text_config().vocab_size
    ids = torch.randint(min(5, words - 1), words, (1, length), generator=torch.Generator().manual_seed(0))
    more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    return model, (), {"input_ids": ids, **more}
