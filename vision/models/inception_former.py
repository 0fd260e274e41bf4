"""iFormer, the Inception Transformer (Si et al., 2205.12956): convolved, pooled and attending channels in every block.

Weights of ``sail-sg/iFormer``: ``iformer_{small,base,large}.pth`` and the fine-tuned ``iformer_{...}_384.pth`` (into a
model of ``img_size=384``), at huggingface.co/sail/dl2 below ``resolve/main/iformer/``. (timm's iFormer is another
model, of 2406.18144.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.mixers.inception import Inception
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Block, Head, Mlp, Stage, conv_grid
from vision.layers.patches import PositionEmbedding
from vision.layers.stems import Grid
from vision.metaformer import per_stage, stage_specs
from vision.published import State, mixer_states, rename
from vision.registry import register


class InceptionStem(nn.Module):
    """Two convolutions 3 x 3 with stride 2 and a batch norm each, GELU in between, then positions: image
    ``(B, in_chans, H, W)`` to map ``(B, ceil(H / 4), ceil(W / 4), dim)``."""

    def __init__(self, in_chans: int, dim: int, positions: PositionEmbedding) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.positions = positions

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        return conv_grid(conv_grid(grid, 3, 2, 1), 3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = image.contiguous(memory_format=torch.channels_last)
        x = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.positions(x.permute(0, 2, 3, 1).contiguous())


class InceptionDownsample(nn.Module):
    """Convolution 3 x 3 with stride 2, batch norm, positions: map to ``(B, ceil(h / 2), ceil(w / 2), out_dim)``."""

    def __init__(self, dim: int, out_dim: int, positions: PositionEmbedding) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, 2, 1)
        self.norm = nn.BatchNorm2d(out_dim)
        self.positions = positions

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the coarser map."""
        return conv_grid(grid, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.permute(0, 3, 1, 2)))
        return self.positions(x.permute(0, 2, 3, 1).contiguous())


class InceptionFormer(VisionModel):
    """Four stages of pre-norm blocks with the Inception mixer; position embeddings and a batch norm where they begin.

    The mixers run on any grid: where the first two stages' cells of 2 x 2 tokens do not fit, those at the end are
    smaller (the published code takes square maps of even sides only). The position embeddings belong to the grids
    of ``img_size``; other sizes need ``resize_``, or ``dynamic_img_size=True``, with which the forward interpolates
    them (bilinear) as the published one does. Weight decay leaves them alone, as the published list means to (it names
    ``pos_embed``, where they are ``pos_embed1`` to ``4``).

    Args:
        depths, dims: blocks and channels of each stage.
        mixers: see ``vision.metaformer.stage_specs``. As published, ever more channels attend, in the third stage from
            block to block too, and the first two attend between cells of 2 x 2 tokens.
        mlp_ratio: hidden width of the MLPs over the channels, one or one a stage.
        layer_scale: initial value of the vectors on the branches, one or one a stage; None for none.
        img_size: the size that the position embeddings are for.
        dynamic_img_size: whether other sizes are accepted.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 320, 384),
        mixers: str | Sequence[str] = "inception(pool=2); inception(heads=3, pool=2); "
        "inception(heads=7)*4, inception(heads=9)*5; inception(heads=11)",
        *,
        mlp_ratio: Amount | Sequence[Amount] = 4.0,
        layer_scale: float | Sequence[float | None] | None = (None, None, 1e-6, 1e-6),
        img_size: Size = 224,
        dynamic_img_size: bool = False,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if not len(depths) == len(dims) > 0:
            raise ValueError(f"dims must have an entry per stage of depths={depths!r}, got {dims!r}")
        ratios = per_stage("mlp_ratio", mlp_ratio, len(depths))
        specs, scales = stage_specs(mixers, depths), per_stage("layer_scale", layer_scale, len(depths))
        seed = int(torch.randint(2**31, (), device="cpu"))
        grid = conv_grid(self.img_size, 3, 2, 1)
        stages: list[Stage] = []
        for i, (dim, rates) in enumerate(zip(dims, drop_paths(drop_path_rate, depths), strict=True)):
            grid = conv_grid(grid, 3, 2, 1)
            positions = PositionEmbedding(dim, grid, "bilinear", dynamic_img_size)
            blocks = []
            for j, rate in enumerate(rates):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    if isinstance(mixer, Inception):
                        mixer.apply(_init)
                mlp = Mlp(dim, int(dim * ratios[i]), act="gelu")
                norms = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
                blocks.append(Block(mixer, mlp, *norms, drop_path=rate, layer_scale=scales[i]))
            if i == 0:
                self.stem = InceptionStem(in_chans, dim, positions)
            stages.append(Stage(InceptionDownsample(dims[i - 1], dim, positions) if i else nn.Identity(), blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        for name, module in self.named_modules():
            if "token_mixer" not in name:
                _init(module)
        self.finish(dims, [4 * 2**i for i in range(len(dims))])

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        "sail-sg/iFormer": lambda model, state: _published(model, state)
    }


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _published(model: InceptionFormer, state: State) -> State:
    patterns = [
        (r"^patch_embed\.proj(\d)\.", r"stem.conv\1."),
        (r"^patch_embed\.norm", "stem.norm"),
        (r"^pos_embed1$", "stem.positions.pos_embed"),
        (r"\.attn\.", ".token_mixer."),
        (r"\.layer_scale_(\d)$", r".layer_scale\1"),
        (r"^head\.", "head.fc."),
    ]
    for i in range(len(model.stages)):
        patterns += [
            (rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.conv."),
            (rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.norm."),
            (rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.positions.pos_embed"),
            (rf"^blocks{i + 1}\.", f"stages.{i}.blocks."),
        ]
    return mixer_states(model, rename(state, patterns), "sail-sg/iFormer")


# Depths, dims, heads that attend in stages 3 (first and second half) and 4, file.
_SIZES = {
    "s": ((3, 3, 9, 3), (96, 192, 320, 384), ("7)*4", "9)*5", "11)"), "iformer_small.pth"),
    "b": ((4, 6, 14, 6), (96, 192, 384, 512), ("8)*7", "10)*7", "15)"), "iformer_base.pth"),
    "l": ((4, 6, 18, 8), (96, 192, 448, 640), ("10)*9", "12)*9", "19)"), "iformer_large.pth"),
}

for _size, (_depths, _dims, _heads, _file) in _SIZES.items():
    _first, _second, _last = (f"inception(heads={text}" for text in _heads)
    register(
        f"inception_former_{_size}",
        InceptionFormer,
        {
            "depths": _depths,
            "dims": _dims,
            "mixers": f"inception(pool=2); inception(heads=3, pool=2); {_first}, {_second}; {_last}",
        },
        paper="2205.12956",
        source="sail-sg/iFormer",
        checkpoint=f"https://huggingface.co/sail/dl2/resolve/main/iformer/{_file}",
        crop_pct=0.9,  # 1.0 for those fine-tuned at 384
        fixed_input_size=True,
        first_conv="stem.conv1",
    )
