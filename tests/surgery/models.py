"""Small foreign models with random weights, an input for each, and what its sites are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def vit(**options: Any) -> nn.Module:
    """timm's ViT of two layers over 2 x 3 patches and a class token."""
    timm = pytest.importorskip("timm")
    small = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": (32, 48), "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **options})


@dataclass(frozen=True)
class Case:
    """A model by name."""

    make: Callable[[], nn.Module]
    sites: tuple[str, ...]
    size: tuple[int, ...] = (3, 32, 48)

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch of three: of two, a tensor in place of a tuple would pass."""
        return torch.randn(3, *self.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with weights that are drawn anew but the same every time, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().to(dtype).eval()


ATTN = ("blocks.0.attn", "blocks.1.attn")
CASES = {"vit": Case(vit, ATTN)}
