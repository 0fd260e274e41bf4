"""GFNet (Rao et al., 2107.00645): a learned frequency response per channel in every block; AFNONet on the same frame.

Weights of ``raoyongming/GFNet``: ``gfnet-{ti,xs,s,b,h-ti,h-s,h-b}`` of the model zoo in its README, to be downloaded by
hand (Tsinghua Cloud, Google Drive). ``NVlabs/AFNO-transformer`` has code, but no weights of its AFNONet, which is
``create_model("gfnet_ti", mixers="afno(groups=4)")``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from matmix.mixers import Mixer, create_mixer
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Head, Mlp, Stage
from vision.layers.block import add
from vision.layers.patches import PatchDownsample, PatchStem, PositionEmbedding
from vision.metaformer import per_stage, stage_specs
from vision.published import State, mixer_states, rename
from vision.registry import register


class FilterBlock(nn.Module):
    """``x <- x + l drop(mlp(norm2(mixer(norm1 x))))`` on ``(B, h, w, dim)``: one skip around both layers.

    Args:
        mixer: a matmix mixer.
        hidden: width of the MLP's hidden layer.
        drop_path: rate of stochastic depth.
        layer_scale: initial value of the vector l; None for none.
        double_skip: ``y = x + mixer(norm1 x)`` and ``x <- y + l drop(mlp(norm2 y))`` instead (an option of AFNONet).
    """

    def __init__(
        self, mixer: Mixer, hidden: int, drop_path: float, layer_scale: float | None, double_skip: bool
    ) -> None:
        super().__init__()
        dim = mixer.dim
        self.double_skip = double_skip
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.token_mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden, act="gelu")
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        mixed = self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid)
        if self.double_skip:
            x = mixed = x + mixed
        return add(x, self.drop_path(self.mlp(self.norm2(mixed))), None, self.layer_scale)


class GFNet(VisionModel):
    """Patches, position embeddings, blocks of a token mixer and an MLP, norm, mean, classifier.

    Filters belong to a grid: another image size is ``img_size=`` at construction (also not square), or ``resize_``,
    which carries the filters' kernels over (``GlobalFilter.resize_`` also has the published bicubic rule for half
    spectra). The filters of a grid that is not square are as wide as its columns ask for; in the published code their
    width comes from the rows.

    An isotropic net (a ``patch`` of 1 behind the first) is cut into stages too, so that it has several feature maps;
    with ``depths=(12,)`` it has one. Its count of parameters does not depend on that.

    Args:
        depths: blocks of each stage; fewer than there are entries of ``patch`` are the first stages.
        dims: channels, of all stages or of each.
        mixers: see ``vision.metaformer.stage_specs``.
        patch: side and stride of each stage's patches, those of the stem first; 1 for none.
        mlp_ratio: hidden width of the MLPs over the channels, one or one a stage.
        layer_scale: initial scale of every block's branch, one or one a stage; None for none.
        double_skip: see ``FilterBlock``.
        img_size: the size that filters and position embeddings are for.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (3, 3, 3, 3),
        dims: int | Sequence[int] = 256,
        mixers: str | Sequence[str] = "global_filter",
        *,
        patch: Sequence[Count] = (16, 1, 1, 1),
        mlp_ratio: Amount | Sequence[Amount] = 4.0,
        layer_scale: float | Sequence[float | None] | None = None,
        double_skip: bool = False,
        img_size: Size = 224,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        widths, specs = per_stage("dims", dims, len(depths)), stage_specs(mixers, depths)
        ratios = per_stage("mlp_ratio", mlp_ratio, len(depths))
        scales = per_stage("layer_scale", layer_scale, len(depths))
        strides = list(patch)[: len(depths)]
        if not len(widths) == len(strides) == len(depths) > 0:
            raise ValueError(f"dims and patch must have an entry per stage, got {dims!r}, {patch!r} for {depths!r}")
        positions = PositionEmbedding(widths[0], _grid(self.img_size, strides[0]))
        self.stem = PatchStem(in_chans, widths[0], strides[0], positions)
        grid = self.stem.out_grid(self.img_size)
        seed = int(torch.randint(2**31, (), device="cpu"))
        stages, before = [], widths[0]
        for number, (dim, rates) in enumerate(zip(widths, drop_paths(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if number and strides[number] > 1:
                downsample = PatchDownsample(before, dim, strides[number])
                grid = _grid(grid, strides[number])
            elif before != dim:
                raise ValueError(f"dims may change where a stage has patches only, got {dims!r} with patch={patch!r}")
            blocks = []
            for i, rate in enumerate(rates):
                with isolated(seed, f"stages.{number}.blocks.{i}.token_mixer"):
                    mixer = create_mixer(specs[number][i], dim, grid)
                blocks.append(FilterBlock(mixer, int(dim * ratios[number]), rate, scales[number], double_skip))
            stages.append(Stage(downsample, blocks))
            before = dim
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(before, eps=1e-6)
        self.head = Head(before, num_classes, global_pool, drop_rate=drop_rate)
        reductions = [strides[0]]
        for stride in strides[1:]:
            reductions.append(reductions[-1] * stride)
        self.finish(widths, reductions)

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        "raoyongming/GFNet": lambda model, state: _published(model, state, "raoyongming/GFNet"),
        "NVlabs/AFNO-transformer": lambda model, state: _published(model, state, "NVlabs/AFNO-transformer"),
    }


def _grid(grid: tuple[int, int], patch: int) -> tuple[int, int]:
    return -(-grid[0] // patch), -(-grid[1] // patch)


def _published(model: GFNet, state: State, source: str) -> State:
    patterns = [
        (r"^patch_embed\.(0\.)?proj\.", "stem.conv."),
        (r"^patch_embed\.(\d+)\.proj\.", r"stages.\1.downsample.conv."),
        (r"^pos_embed$", "stem.positions.pos_embed"),
        (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.filter\.", ".token_mixer."),
        (r"\.gamma$", ".layer_scale"),
        (r"^head\.", "head.fc."),
    ]
    if not any(name.startswith("patch_embed.0.") for name in state):  # isotropic: one list of blocks
        depths = [len(stage.blocks) for stage in model.stages if isinstance(stage, Stage)]
        places = [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
        patterns += [(rf"^blocks\.{n}\.", f"stages.{s}.blocks.{b}.") for n, (s, b) in enumerate(places)]
    ours = mixer_states(model, rename(state, patterns), source)
    name = "stem.positions.pos_embed"
    wanted = model.get_parameter(name).shape
    if name in ours and ours[name].shape == (1, wanted[1] * wanted[2], wanted[3]):
        ours[name] = ours[name].view(wanted)
    return ours


_SIZES: dict[str, dict[str, Any]] = {
    "ti": {"depths": (3, 3, 3, 3), "dims": 256},
    "xs": {"depths": (3, 3, 3, 3), "dims": 384},
    "s": {"depths": (5, 5, 5, 4), "dims": 384},
    "b": {"depths": (5, 5, 5, 4), "dims": 512},
    "h_ti": {"depths": (3, 3, 10, 3), "dims": (64, 128, 256, 512), "layer_scale": 1e-3},
    "h_s": {"depths": (3, 3, 10, 3), "dims": (96, 192, 384, 768), "layer_scale": 1e-5},
    "h_b": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768), "layer_scale": 1e-6},
}

for _size, _options in _SIZES.items():
    _pyramid = _size.startswith("h_")
    register(
        f"gfnet_{_size}",
        GFNet,
        {**_options, "patch": (4, 2, 2, 2) if _pyramid else (16, 1, 1, 1)},
        paper="2107.00645",
        source="raoyongming/GFNet",
        crop_pct=0.875,  # the code's evaluation: 256 to 224 (its configuration says 0.9 and is not read)
        pool_size=(7, 7) if _pyramid else (14, 14),
        fixed_input_size=True,
    )
