"""ActiveMLP (Wei et al., 2203.06108): every channel of a token picks where in its row and its column it reads.

Weights of ``microsoft/TokenMixers``: ``ActivexTiny``, ``ActiveTiny``, ``ActiveSmall``, ``ActiveBase`` and
``ActiveLarge`` (also fine-tuned at 384), linked in ``Active Token Mixer/README.md``, to be downloaded by hand
(OneDrive); the printed accuracies are of the checkpoints' ``model_ema``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from matmix.mixers import Mixer, create_mixer
from matmix.mixers.active import Active
from matmix.ops.marks import spare
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import ConvDownsample, ConvStem, Head, Mlp, Stage
from vision.layers.block import add
from vision.metaformer import per_stage, stage_specs
from vision.published import State, mixer_states, rename
from vision.registry import register

SOURCE = "microsoft/TokenMixers"


class Given(nn.Module):
    """Stands in a mixer's ``offset_layer`` and gives the distances that its block was handed."""

    offsets: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.offsets is not None, "the block sets the distances before it calls its mixer"
        return self.offsets


@register_notrace_module  # torch.fx would not see how the distances reach the mixer
class ActiveBlock(nn.Module):
    """``x <- x + drop(mixer(norm1 x))``, then ``x <- x + drop(mlp(norm2 x))``; where an active mixer reads comes in by
    hand.

    Args:
        mixer: a matmix mixer.
        hidden: width of the MLP's hidden layer.
        drop_path: rate of stochastic depth, the same for both branches.
        makes: whether the block keeps its active mixer's layer that makes distances (for itself and for those behind
            it).
    """

    def __init__(self, mixer: Mixer, hidden: int, drop_path: float, makes: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(mixer.dim)
        self.token_mixer = mixer
        self.given, self.offset_layer = Given(), None
        if isinstance(mixer, Active):
            made, mixer.offset_layer = mixer.offset_layer, self.given
            self.offset_layer = made if makes else None
        self.norm2 = nn.LayerNorm(mixer.dim)
        self.mlp = Mlp(mixer.dim, hidden, act="gelu")
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, offsets: Tensor | None) -> Tensor:
        """Map ``(B, h, w, dim)`` and distances ``(B, h w, 2 dim / share)``, those along the row first; None for a mixer
        that needs none."""
        grid = x.shape[1], x.shape[2]
        self.given.offsets = offsets
        mixed = self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid)
        self.given.offsets = None
        x = add(x, self.drop_path(mixed))
        return add(x, self.drop_path(self.mlp(self.norm2(x))))

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda block, state: mixer_states(block, rename(state, [(r"^atm\.", "token_mixer.")]), SOURCE)
    }


class ActiveStage(Stage):
    """Blocks in runs that share distances; before each run a depthwise 3 x 3 convolution (one for all of them) is
    added to the map and tells the block where it stands.

    Args:
        downsample, blocks: as in ``Stage``.
        dim: channels.
        starts: the first block of every run.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[ActiveBlock], dim: int, starts: Collection[int]) -> None:
        super().__init__(downsample, blocks)
        self.starts = frozenset(starts)
        self.positions = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        spare(self.positions, ("weight", "bias"))  # as published

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        offsets = None
        for number, block in enumerate(self.blocks):
            assert isinstance(block, ActiveBlock)
            if number in self.starts:
                x = x + self.positions(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if block.offset_layer is not None:
                offsets = block.offset_layer(x.flatten(1, 2))
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, offsets, use_reentrant=False)
            else:
                x = block(x, offsets)
        return x


class ActiveMLP(VisionModel):
    """Convolutional stem and downsampling without norms, blocks of the active mixer and an MLP, norm, mean, classifier.

    Nothing is tied to the image's size. Every ``interval``-th block of a stage makes new distances, from its input
    before the norm; the blocks behind it read at the same ones. The last block of a stage never does, unless it is the
    only one (the published code would then fail or use the previous stage's). Among mixers of other kinds, the first
    active one of a run makes them, and one that shares them among other channels makes its own.

    Args:
        depths, dims: blocks and channels of each stage.
        mixers: see ``vision.metaformer.stage_specs``.
        mlp_ratio: hidden width of the MLPs over the channels, one or one a stage.
        interval: blocks from one set of distances to the next.
        img_size: only noted; every size works.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (2, 2, 4, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mixers: str | Sequence[str] = "active(share=2), active(share=4), active(share=4), active(share=8)",
        *,
        mlp_ratio: Amount | Sequence[Amount] = 4.0,
        interval: Count = 2,
        img_size: Size = 224,
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
        specs, seed = stage_specs(mixers, depths), int(torch.randint(2**31, (), device="cpu"))
        self.stem = ConvStem(in_chans, dims[0], norm=None)
        grid = self.stem.out_grid(self.img_size)
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_paths(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = down = ConvDownsample(dims[i - 1], dim, norm=None)
                grid = down.out_grid(grid)
            last, blocks, made = len(rates) - 1, [], None
            starts = {j for j in range(len(rates)) if j == 0 or (j % interval == 0 and j != last)}
            for j, rate in enumerate(rates):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    if isinstance(mixer, Active):
                        mixer.apply(_init)
                share = mixer.share if isinstance(mixer, Active) else None
                made = None if j in starts else made  # the channels that share the distances made last
                blocks.append(ActiveBlock(mixer, int(dim * ratios[i]), rate, makes=share != made))
                made = made if share is None else share
            stages.append(ActiveStage(downsample, blocks, dim, starts))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        for name, module in self.named_modules():
            if "token_mixer" not in name and "offset_layer" not in name:
                _init(module)
        self.finish(dims, [4 * 2**i for i in range(len(dims))])

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda model, state: _published(model, state)
    }


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _published(model: ActiveMLP, state: State) -> State:
    patterns = [
        (r"^patch_embed\.proj\.", "stem.conv."),
        (r"^pos_blocks\.(\d+)\.proj\.", r"stages.\1.positions."),
        (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.atm\.", ".token_mixer."),
        (r"^head\.", "head.fc."),
    ]
    for i, stage in enumerate(model.stages):  # published: inside the last block of the stage before
        assert isinstance(stage, Stage)
        last = rf"^stages\.{i}\.blocks\.{len(stage.blocks) - 1}\."
        patterns.append((rf"{last}downsample\.proj\.", f"stages.{i + 1}.downsample.conv."))
    return mixer_states(model, rename(state, patterns), SOURCE)


_DIMS = (64, 128, 320, 512)
_WIDE = {"mlp_ratio": (8, 8, 4, 4), "interval": 6}
_SIZES: dict[str, dict[str, Any]] = {
    "xt": {"depths": (2, 2, 4, 2), "dims": _DIMS},
    "t": {"depths": (2, 3, 10, 3), "dims": _DIMS},
    "s": {"depths": (3, 4, 18, 3), "dims": _DIMS, **_WIDE},
    "b": {"depths": (3, 8, 27, 3), "dims": _DIMS, **_WIDE},
    "l": {"depths": (3, 4, 24, 3), "dims": (96, 192, 384, 768), "interval": 6},
}

for _size, _options in _SIZES.items():
    register(
        f"activemlp_{_size}",
        ActiveMLP,
        _options,
        paper="2203.06108",
        source=SOURCE,
        crop_pct=0.875,
    )
