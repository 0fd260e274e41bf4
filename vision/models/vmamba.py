"""VMamba (Liu et al., 2401.10166): SS2D, the cross-scan, in a hierarchical backbone.

Weights of ``MzeroMiko/VMamba``, linked in its ``assets/performance.md`` as release files: the first models ("vanilla",
here ``vmamba_v0_*``: a gate in SS2D, 16 states, no MLP), and the later, faster ones (no gate, one state, an MLP,
convolutions between the stages), named by the width of SS2D over the model's (s) and the layers of the third stage (l).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.mixers import create_mixer
from matmix.mixers.ss2d import SS2D
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Block, Head, Mlp, Stage
from vision.layers.stems import Grid, conv_grid
from vision.metaformer import per_stage, stage_specs
from vision.models.hydra_vit import MixerBlock
from vision.published import State, mixer_states, rename
from vision.registry import register


class NormedConv(nn.Module):
    """Convolution, then a layer norm of every position, on ``(B, h, w, C)``."""

    def __init__(self, dim: int, out_dim: int, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(out_dim)
        self.reach = kernel, stride, padding

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that is left of a grid."""
        return conv_grid(grid, *self.reach)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchStem(NormedConv):
    """Patches of 4 x 4, normalised: image ``(B, in_chans, H, W)`` to ``(B, floor(H / 4), floor(W / 4), dim)``."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(in_chans, dim, 4, 4)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two convolutions 3 x 3 with stride 2, normalised, GELU between them: image to ``(B, ceil(H / 4), ..., dim)``."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.first = NormedConv(in_chans, dim // 2, 3, 2, 1)
        self.second = NormedConv(dim // 2, dim, 3, 2, 1)

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        return self.second.out_grid(self.first.out_grid(grid))

    def forward(self, image: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(image.permute(0, 2, 3, 1))))


class PatchMerging(nn.Module):
    """Four neighbours side by side, a layer norm and a linear map, as in Swin: ``(B, h, w, C)`` to
    ``(B, ceil(h / 2), ceil(w / 2), out_dim)``. Odd sides are filled up with zeros."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the coarser map."""
        return -(-grid[0] // 2), -(-grid[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = x.unflatten(2, (x.shape[2] // 2, 2)).unflatten(1, (x.shape[1] // 2, 2))
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # down, then right


class VMamba(VisionModel):
    """Images to logits; any size of at least 32 pixels a side. One class for both generations, see the module.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        mixers: see ``vision.metaformer.stage_specs``.
        mlp_ratio: hidden width of the MLPs over the channels, one or one a stage; 0 for none.
        stem: ``"patch"`` (one convolution of 4 x 4) or ``"conv"`` (two of 3 x 3).
        down: ``"merge"`` (Swin's) or ``"conv"`` (3 x 3 with stride 2, then a norm).
        img_size: for mixers of fixed length; SS2D only notes it.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (2, 2, 9, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        mixers: str | Sequence[str] = "ss2d",
        *,
        mlp_ratio: Amount | Sequence[Amount] = 0.0,
        stem: Literal["patch", "conv"] = "patch",
        down: Literal["merge", "conv"] = "merge",
        img_size: Size = 224,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if len(dims) != len(depths) or not depths:
            raise ValueError(f"dims must have an entry per stage of depths={depths!r}, got {dims!r}")
        specs, ratios = stage_specs(mixers, depths), per_stage("mlp_ratio", mlp_ratio, len(depths))
        self.stem = PatchStem(in_chans, dims[0]) if stem == "patch" else ConvStem(in_chans, dims[0])
        grid = self.stem.out_grid(self.img_size)
        seed = int(torch.randint(2**31, (), device="cpu"))
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_paths(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                before = dims[i - 1]
                coarser = PatchMerging(before, dim) if down == "merge" else NormedConv(before, dim, 3, 2, 1)
                downsample, grid = coarser, coarser.out_grid(grid)
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    if isinstance(mixer, SS2D):
                        mixer.apply(init)
                if ratios[i]:
                    mlp = Mlp(dim, int(ratios[i] * dim), "gelu")
                    blocks.append(Block(mixer, mlp, nn.LayerNorm(dim), nn.LayerNorm(dim), drop_path=rate))
                else:
                    blocks.append(MixerBlock(mixer, rate))
            stages.append(Stage(downsample, blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        for name, module in self.named_modules():
            if "token_mixer" not in name:
                init(module)
        self.finish(dims, [4 * 2**i for i in range(len(depths))])

    published: ClassVar = {"MzeroMiko/VMamba": lambda model, state: _published(state, model)}


def init(module: nn.Module) -> None:
    """Swin's draws of linear layers: normal of deviation 0.02, biases 0; the rest as drawn."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _published(state: State, model: VMamba) -> State:
    two = isinstance(model.stem, ConvStem)
    # The first checkpoints name some parts otherwise.
    stem = [(r"^patch_embed\.(0|proj)\.", "stem.conv."), (r"^patch_embed\.(2|norm)\.", "stem.norm.")]
    if two:
        stem = [(rf"^patch_embed\.{i}\.", f"stem.{n}.") for i, n in enumerate(_STEM) if n]
    patterns = [
        *stem,
        (r"^layers\.(\d+)\.downsample\.1\.", r"layers.\1.downsample.conv."),
        (r"^layers\.(\d+)\.downsample\.3\.", r"layers.\1.downsample.norm."),
        (r"\.blocks\.(\d+)\.(norm|ln_1)\.", r".blocks.\1.norm1."),
        (r"\.blocks\.(\d+)\.(op|self_attention)\.", r".blocks.\1.token_mixer."),
        (r"^(classifier\.)?head\.", "head.fc."),
        (r"^classifier\.", ""),
    ]
    # A downsampling stands behind its stage there, in front of the next one here.
    for i in range(len(model.stages) - 1):
        patterns.append((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample."))
    ours = rename(state, [*patterns, (r"^layers\.", "stages.")])
    # Channels-first models keep linear layers as 1 x 1 convolutions.
    flat = {n: v.flatten(1) if n.endswith((".fc1.weight", ".fc2.weight")) else v for n, v in ours.items()}
    return mixer_states(model, flat, "MzeroMiko/VMamba")


_STEM = ("first.conv", "", "first.norm", "", "", "second.conv", "", "second.norm")
_TINY, _BASE = (96, 192, 384, 768), (128, 256, 512, 1024)

for _name, _depth, _dims, _file in (
    ("vmamba_v0_t", 9, _TINY, "vssmtiny_dp01_ckpt_epoch_292.pth"),
    ("vmamba_v0_s", 27, _TINY, "vssmsmall_dp03_ckpt_epoch_238.pth"),
    ("vmamba_v0_b", 27, _BASE, "vssmbase_dp06_ckpt_epoch_241.pth"),
):
    register(
        _name,
        VMamba,
        {"depths": (2, 2, _depth, 2), "dims": _dims},
        paper="2401.10166",
        source="MzeroMiko/VMamba",
        checkpoint=_file,
        crop_pct=0.875,
    )

for _name, _depth, _dims, _ratio, _file in (
    ("vmamba_t_s2l5", 5, _TINY, 2, "vssm_tiny_0230_ckpt_epoch_262.pth"),
    ("vmamba_s_s2l15", 15, _TINY, 2, "vssm_small_0229_ckpt_epoch_222.pth"),
    ("vmamba_b_s2l15", 15, _BASE, 2, "vssm_base_0229_ckpt_epoch_237.pth"),
    ("vmamba_t_s1l8", 8, _TINY, 1, "vssm1_tiny_0230s_ckpt_epoch_264.pth"),
    ("vmamba_s_s1l20", 20, _TINY, 1, "vssm1_small_0229s_ckpt_epoch_240.pth"),
    ("vmamba_b_s1l20", 20, _BASE, 1, "vssm1_base_0229s_ckpt_epoch_225.pth"),
):
    register(
        _name,
        VMamba,
        {
            "depths": (2, 2, _depth, 2),
            "dims": _dims,
            "mixers": f"ss2d(expand={_ratio}, d_state=1, out_gate=False, conv_bias=False)",
            "mlp_ratio": 4.0,
            "stem": "conv",
            "down": "conv",
        },
        paper="2401.10166",
        source="MzeroMiko/VMamba",
        checkpoint=_file,
        crop_pct=0.875,
        first_conv="stem.first.conv",
    )
