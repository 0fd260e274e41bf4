"""Hydra in the place of ViT-B's blocks (Hwang et al., 2407.09941, section 4.2.2 and appendix D.2).

The authors published neither this code nor its weights; this is our reading of what they wrote:

- the paper: patches of 16, read row by row, no position embedding; 24 Hydra layers where ViT-B has 12 blocks of two
  layers, so no MLPs; everything else as in ViT; weights from a truncated normal of 0.02; stochastic depth 0.5.
- the first author (goombalab/hydra, discussion of issue 1): the layer's default options (``d_state=64``, ``d_conv=7``,
  ``expand=2``), in the ViT of state-spaces/s4. That one, without a class token: pre-norm residual layers with
  ``eps=1e-5``, stochastic depth linear over the layers, norm, mean over the tokens, linear classifier.

It has 93.2 M parameters, the paper prints 91 M: so would ``mixers="hydra(d_state=32)"``, at 90.8 M. Nothing else in the
sources speaks for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from matmix.mixers import Mixer, create_mixer
from matmix.mixers.hydra import Hydra
from matmix.ranges import Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Head, Stage
from vision.layers.block import add
from vision.layers.patches import PatchStem
from vision.metaformer import per_stage, stage_specs
from vision.registry import register


class MixerBlock(nn.Module):
    """``x <- x + drop(mixer(norm1 x))`` on ``(B, h, w, dim)``, without an MLP."""

    def __init__(self, mixer: Mixer, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(mixer.dim)
        self.token_mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        mixed = self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid)
        return add(x, self.drop_path(mixed))


class HydraViT(VisionModel):
    """Patches, pre-norm residual layers of a token mixer alone, norm, mean, classifier; images of any size.

    The layers are cut into stages so that there are several feature maps, all of one grid and width.

    Args:
        depths: layers of each stage.
        dims: channels; the same in all stages, since nothing lies between them.
        mixers: see ``vision.metaformer.stage_specs``.
        patch: side of a patch.
        img_size: the grid that mixers of fixed length are built for; Hydra only notes it.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (6, 6, 6, 6),
        dims: int | Sequence[int] = 768,
        mixers: str | Sequence[str] = "hydra",
        *,
        patch: Count = 16,
        img_size: Size = 224,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        widths, specs = per_stage("dims", dims, len(depths)), stage_specs(mixers, depths)
        dim = widths[0]
        if set(widths) != {dim}:
            raise ValueError(f"dims must be one width for all stages, got {dims!r}")
        self.stem = PatchStem(in_chans, dim, patch)
        grid = self.stem.out_grid(self.img_size)
        seed = int(torch.randint(2**31, (), device="cpu"))
        stages = []
        for i, rates in enumerate(drop_paths(drop_path_rate, depths)):
            blocks = []
            for j, rate in enumerate(rates):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    if isinstance(mixer, Hydra):
                        mixer.apply(_init)
                blocks.append(MixerBlock(mixer, rate))
            stages.append(Stage(nn.Identity(), blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim)
        self.head = Head(dim, num_classes, global_pool, drop_rate=drop_rate)
        self.finish(widths, [patch] * len(depths))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register(
    "hydra_vit_b",
    HydraViT,
    {"depths": (6, 6, 6, 6), "dims": 768},
    paper="2407.09941",
    source="goombalab/hydra",
    crop_pct=0.9,
    pool_size=(14, 14),
)
