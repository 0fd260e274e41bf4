"""Small foreign models with random weights, an input for each, and the names of their sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip("timm")
VERSION = tuple(int(part) for part in timm.__version__.split(".")[:3])


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """timm's ViT of two layers over 2 x 3 patches."""
    small = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": (32, 48), "num_classes": 5}
    return timm.create_model(name, **{**small, **options})


def metaformer(kinds: tuple[str, ...]) -> nn.Module:
    """timm's MetaFormer of two stages, over 8 x 12 and 4 x 6 tokens."""
    from timm.models import metaformer as source

    mixers = [getattr(source, kind) for kind in kinds]
    norms = [source.LayerNormNoBias if kind == "Attention" else source.LayerNorm2dNoBias for kind in kinds]
    return source.MetaFormer(num_classes=5, depths=(1, 1), dims=(8, 32), token_mixers=mixers, norm_layers=norms)


def swin(depths: tuple[int, ...] = (1, 1)) -> nn.Module:
    """timm's Swin over 8 x 12 and 4 x 6 tokens in windows of 4 x 4; every second block of a stage has shifted ones."""
    small = {"embed_dim": 12, "num_heads": (3,) * len(depths), "window_size": 4, "img_size": (32, 48), "num_classes": 5}
    return timm.create_model("swin_tiny_patch4_window7_224", depths=depths, drop_path_rate=0.0, **small)


@dataclass(frozen=True)
class Case:
    """A model by name."""

    make: Callable[[], nn.Module]
    sites: tuple[str, ...]
    size: tuple[int, ...] = (3, 32, 48)
    prefix: int = 0
    since: tuple[int, ...] = (1, 0, 15)  # timm's version that has the model or its options

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch of three: of two, a tensor in place of a tuple would pass."""
        return torch.randn(3, *self.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with weights that are drawn anew but the same every time, in eval mode."""
        if self.since > VERSION:
            pytest.skip(f"needs timm >= {'.'.join(map(str, self.since))}, this is {timm.__version__}")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().to(dtype).eval()


ATTN = ("blocks.0.attn", "blocks.1.attn")
STAGES = ("stages.0.blocks.0.token_mixer", "stages.1.blocks.0.token_mixer")
CASES = {
    "vit": Case(vit, ATTN, prefix=1),
    "norms": Case(lambda: vit(qk_norm=True, scale_attn_norm=True), ATTN, prefix=1, since=(1, 0, 23)),
    "deit": Case(lambda: vit("deit_tiny_distilled_patch16_224"), ATTN, prefix=2),
    "registers": Case(lambda: vit("vit_medium_patch16_reg4_gap_256"), ATTN, prefix=4),
    "beit": Case(lambda: vit("beit_base_patch16_224"), ATTN, prefix=1),
    "relpos": Case(lambda: vit("vit_relpos_small_patch16_224", rel_pos_type="bias"), ATTN),
    "srelpos": Case(lambda: vit("vit_srelpos_small_patch16_224", rel_pos_type="bias"), ATTN),
    "swin": Case(swin, ("layers.0.blocks.0.attn", "layers.1.blocks.0.attn")),
    "eva": Case(lambda: vit("eva02_tiny_patch14_224", img_size=(28, 42)), ATTN, (3, 28, 42), 1),
    "dinov3": Case(lambda: vit("vit_small_patch16_dinov3"), ATTN, prefix=5, since=(1, 0, 20)),
    "convnext": Case(
        lambda: timm.create_model("convnext_atto", depths=(1,) * 4, dims=(8, 8, 16, 16), num_classes=5),
        tuple(f"stages.{stage}.blocks.0.conv_dw" for stage in range(4)),
        (3, 64, 96),
    ),
    "caformer": Case(lambda: metaformer(("SepConv", "Attention")), STAGES),
    "poolformer": Case(lambda: metaformer(("Pooling", "Pooling")), STAGES),
}
ATTENTION = ("vit", "norms", "deit", "registers", "beit", "relpos", "srelpos", "swin", "eva", "dinov3")
